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
# # Embeddings
# > The features of all slices in a file, each with the identifier of its slice.
#
# The original stored features as a bare array and the order of the slices in a pickle of its data loader. An array of
# one order and a loader of another fit together without an error, and every later number is wrong. Here the file names
# the slices itself, and a reader asks for slices by name.

# %%
#| default_exp ich.learning.embeddings

# %%
#| export
import json
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from mammo_nb.core.errors import ProjectError
from mammo_nb.core.files import replacing

# %%
#| hide
import tempfile

# %% tags=["parameters"]
slices, width = 5, 4   # slices and features of the small file below

# %% [markdown]
# ## One file
# A file holds the features and the probabilities of one encoder for one view of the slices. Its header holds the
# identifiers, the SHA-256 of the encoder's weights, and what else the caller states. The header has one entry, because
# the library that writes the file puts several into a random order, and equal content should give equal files.

# %%
#| export
class EmbeddingsError(ProjectError):
    "A file of embeddings that cannot be read or that lacks a slice."

VIEWS = ("plain", "flip", "transpose")

def embedding_name(
    encoder: str,   # name of the view of the classifier, as in the recipe
    fold: int,      # held back; -1: none
    epoch: int,
    view: str,      # one of VIEWS
) -> str:
    "Name of a file in weights/embeddings/."
    return f"{encoder}_fold{fold}_epoch{epoch}_{view}.safetensors"

def write_embeddings(
    path: Path,                  # NAME.safetensors
    image_ids: list[str],        # of the rows, each once
    embeddings: np.ndarray,      # (n, features)
    probabilities: np.ndarray,   # (n, classes)
    metadata: dict,              # encoder_sha256 and what else made them; anything JSON can hold
) -> None:
    "Write the features and probabilities of slices, as float32."
    if not len(image_ids) == len(set(image_ids)) == len(embeddings) == len(probabilities):
        raise EmbeddingsError(f"{Path(path).name}: {len(set(image_ids))} different slices, {len(embeddings)} rows of "
                              f"features and {len(probabilities)} of probabilities. Give one row for each slice.")
    about = json.dumps({**metadata, "image_ids": list(image_ids)})
    tensors = {"embeddings": embeddings, "probabilities": probabilities}
    with replacing(path) as temporary:
        save_file({k: np.ascontiguousarray(v, np.float32) for k, v in tensors.items()}, temporary, {"about": about})

def _open(path: Path):
    if not path.is_file():
        raise EmbeddingsError(f"{path.name} is not in {path.parent}. Run the stage embed.")
    try:
        file = safe_open(path, "numpy")
    except SafetensorError as e:
        raise EmbeddingsError(f"{path.name} is not a complete safetensors file ({e}). "
                              "Delete it and run the stage embed.") from e
    if "about" not in (file.metadata() or {}) or {"embeddings", "probabilities"} - set(file.keys()):
        raise EmbeddingsError(f"{path.name} is not a file of embeddings. Run the stage embed.")
    return file

def read_about(
    path: Path,   # NAME.safetensors
) -> dict:        # image_ids, encoder_sha256 and what else the writer stated
    "Read the header of a file of embeddings. Raises EmbeddingsError."
    with _open(Path(path)) as file:
        return json.loads(file.metadata()["about"])

def read_embeddings(
    path: Path,                          # NAME.safetensors
    image_ids: list[str] | None = None,  # the slices wanted, in this order; None: all as they are in the file
) -> tuple[np.ndarray, np.ndarray]:      # embeddings float32 (n, features), probabilities float32 (n, classes)
    "Read the rows of some slices. Raises EmbeddingsError if the file lacks one of them."
    path = Path(path)
    with _open(path) as file:
        there = json.loads(file.metadata()["about"])["image_ids"]
        embeddings, probabilities = (file.get_tensor(k) for k in ("embeddings", "probabilities"))
    if image_ids is None:
        return embeddings, probabilities
    place = {image: k for k, image in enumerate(there)}
    if missing := [i for i in image_ids if i not in place]:
        raise EmbeddingsError(f"{path.name} lacks {len(missing)} of {len(image_ids)} slices, such as {missing[0]}. "
                              "It belongs to another table: run the stage embed.")
    rows = [place[i] for i in image_ids]
    return embeddings[rows], probabilities[rows]

# %%
folder = Path(tempfile.mkdtemp())
ids = [f"ID_{k:09x}" for k in range(slices)]
values = np.random.default_rng(0).random((slices, width)).astype(np.float32)
write_embeddings(folder / "a.safetensors", ids, values, values[:, :2], {"encoder_sha256": "0" * 64})
back, probabilities = read_embeddings(folder / "a.safetensors", ids[::-2])
assert np.array_equal(back, values[::-2]) and np.array_equal(probabilities, values[::-2, :2])
first = (folder / "a.safetensors").read_bytes()
write_embeddings(folder / "a.safetensors", ids, values, values[:, :2], {"encoder_sha256": "0" * 64})
assert (folder / "a.safetensors").read_bytes() == first
read_about(folder / "a.safetensors")

# %% [markdown]
# ## Several views
# The original embeds each slice as it is, mirrored and transposed, and averages the features before the sequence model.

# %%
#| export
def mean_views(
    paths: list[Path],                   # files of one encoder, one for each view
    image_ids: list[str] | None = None,  # the slices wanted, in this order; None: all of the first file
) -> tuple[np.ndarray, np.ndarray]:      # embeddings float32 (n, features), probabilities float32 (n, classes)
    "Mean of the features and of the probabilities over views. Raises EmbeddingsError if the encoders differ."
    about = [read_about(p) for p in paths]
    if len({a.get("encoder_sha256") for a in about}) > 1:
        raise EmbeddingsError(f"{', '.join(Path(p).name for p in paths)} were made by different encoders. "
                              "Run the stage embed.")
    ids = about[0]["image_ids"] if image_ids is None else image_ids
    read = [read_embeddings(p, ids) for p in paths]
    return tuple(np.mean([r[k] for r in read], axis=0, dtype=np.float32) for k in (0, 1))

# %%
write_embeddings(folder / "b.safetensors", ids[::-1], 3 * values[::-1], values[::-1, :2], {"encoder_sha256": "0" * 64})
both, _ = mean_views([folder / "a.safetensors", folder / "b.safetensors"])
assert np.allclose(both, 2 * values)

# %% [markdown]
# ## What came out
# A slice that is missing, a file of another encoder and a damaged file are errors:

# %%
write_embeddings(folder / "c.safetensors", ids, values, values[:, :2], {"encoder_sha256": "1" * 64})
(folder / "d.safetensors").write_bytes(first[:200])
for wrong in (lambda: read_embeddings(folder / "a.safetensors", ["ID_ffffffff0"]),
              lambda: mean_views([folder / "a.safetensors", folder / "c.safetensors"]),
              lambda: read_embeddings(folder / "d.safetensors"), lambda: read_embeddings(folder / "e.safetensors"),
              lambda: write_embeddings(folder / "f.safetensors", ids[:1] * slices, values, values, {})):
    try:
        wrong()
    except EmbeddingsError as e:
        print(str(e).replace(str(folder), "the folder"))
    else:
        raise AssertionError

# %% [markdown]
# ---
# [↑ Head CT](../00_system.py)
