# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Running networks
# > Chapter 5: from a trained network to a file that runs on another machine, with the same numbers.
#
# A network is trained in torch and used elsewhere: on a laptop without a GPU, in a notebook of Kaggle without internet,
# by a package that does not have its code. This chapter turns networks into files that hold everything between the
# stored numbers and the probabilities, and opens them with any package that is installed. Inputs and outputs of a
# network are stated in a JSON beside the graph, so a mammogram, a volume with its mask and a sequence with its lengths
# are handled in the same way.
#
# Read in this order:
#
# | notebook | what it has |
# |---|---|
# | [51 sidecars](51_sidecars.py) | the JSON beside a graph: names, types, shapes, axes; the check of arrays |
# | [52 tensorrt](52_tensorrt.py) | engines for NVIDIA's GPUs, by `tensorrt` or `tensorrt_rtx` |
# | [53 backends](53_backends.py) | one graph file opened by ONNX Runtime, OpenVINO or TensorRT |
# | [54 ensembles](54_ensembles.py) | networks, preparation and activation as one module; export; registry |
# | [55 graphs](55_graphs.py) | mixed precision and fewer networks, in a file that exists already |
# | [56 engines](56_engines.py) | an ensemble that is ready to run, from a file or in torch, and its parity |
# | [57 providers](57_providers.py) | all providers of an ensemble in order, and the gate that excludes some |
# | [58 detection](58_detection.py) | what happens before and after a detector, in NumPy |
# | [59 yolox](59_yolox.py) | the winner's detector: network, loss, files, graph |
#
# A system that brings a network of its own registers it in [ensembles](54_ensembles.py), states its inputs and outputs
# when it makes the `Ensemble`, and needs no more code for the rest of the chapter.

# %% [markdown]
# ---
# [← Labels](49_labels.py) · [Sidecars →](51_sidecars.py)
