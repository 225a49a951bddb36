"""int8 on a CPU: what it saves, and how far it moves an ensemble's probabilities and its AUC, against float32.

    .venv/bin/python tests/bench/int8.py --runs runs/demo
    .venv/bin/python tests/bench/int8.py --runs             # the ConvNeXt-small alone

Each ensemble is quantized in several ways: by ONNX Runtime (QDQ, static, activations uint8, weights int8), which
ONNX Runtime and OpenVINO run, and by NNCF for OpenVINO where it is installed (pip install nncf; the project does not
need it). Ranges come from the crops of some patients, and the crops of the others are scored: out of fold, per breast.
Real and drawn breasts, resized to the ensemble's input, are compared as well. A ConvNeXt-small with random weights has
no AUC. All engines are warmed up and then take turns on one thread; the processor's own seconds are counted, and the
median of the rounds is written down. Results go to tests/bench/results/int8.csv.
"""
import argparse
import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")   # no package reports what is computed here
sys.modules.setdefault("openvino_telemetry", None)
import onnx
import onnxruntime
import openvino
import pandas as pd
import torch
from engines import random_ensemble
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from mammo_nb.core.ensembles import rebuild
from mammo_nb.core.files import read_json
from mammo_nb.core.metrics import auc
from mammo_nb.core.pictures import fit_resize
from mammo_nb.core.providers import LIMITS
from mammo_nb.mammo.crops import crop_path
from mammo_nb.mammo.datasets import per_breast, read_table
from mammo_nb.mammo.drawing.breast import make_breast

RESULTS = Path(__file__).parent / "results"
REAL = Path(__file__).parents[3] / "shared/data/mammo/cbis_ddsm_mass_256/img"
LIMIT, AUC_LIMIT = LIMITS["bf16"], .002


@dataclass
class Layer:
    "A layer with weights."
    name: str
    kind: str     # first, depthwise, dense (most of the work), last
    depth: int    # layers with weights on the longest way from the input to it, itself included


def layers_of(graph: onnx.GraphProto) -> list[Layer]:
    "The layers with weights in their order."
    weights = {t.name: t for t in graph.initializer}
    depth, found = {}, []
    for node in graph.node:
        deep = max((depth.get(i, 0) for i in node.input), default=0)
        own = [weights[i] for i in node.input if i in weights and len(weights[i].dims) > 1]
        if node.op_type in ("Conv", "MatMul", "Gemm") and own:
            deep += 1
            groups = next((a.i for a in node.attribute if a.name == "group"), 1)
            kind = "first" if deep == 1 else "depthwise" if groups > 1 else "dense"
            found.append(Layer(node.name, kind, deep))
        depth |= dict.fromkeys(node.output, deep)
    deepest = max(layer.depth for layer in found)
    for layer in found:
        layer.kind = "last" if layer.depth == deepest else layer.kind
    return found


def followers(graph: onnx.GraphProto, chosen: set[str]) -> list[str]:
    "Activations and additions between chosen layers, which are in int8 if both their sides are."
    made_by = {o: n for n in graph.node for o in n.output}

    def within(tensor: str) -> bool:
        node = made_by.get(tensor)
        if node is None:
            return False
        if node.op_type in ("Clip", "Relu", "Add"):
            return all(within(i) for i in node.input[:2 if node.op_type == "Add" else 1])
        return node.name in chosen

    return [n.name for n in graph.node if n.op_type in ("Clip", "Relu", "Add") and within(n.output[0])]


def choices(layers: list[Layer]) -> dict[str, Callable]:
    "What is in int8: name -> whether a layer is."
    deepest = max(layer.depth for layer in layers)
    ways = {
        "all layers": lambda layer: True,
        "all but first and last": lambda layer: layer.kind not in ("first", "last"),
        "all but depthwise": lambda layer: layer.kind != "depthwise",
    }
    for name, share in (("half", .5), ("quarter", .25)):
        start = deepest * (1 - share)
        ways[f"last {name}, without the last"] = (
            lambda layer, start=start: layer.depth > start and layer.kind != "last")
    return ways


class Reader(CalibrationDataReader):
    "Crops, some at a time."
    def __init__(self, name: str, pictures: np.ndarray):
        self.name, self.left = name, iter(np.array_split(pictures, max(1, len(pictures) // 4)))

    def get_next(self):
        portion = next(self.left, None)
        return None if portion is None else {self.name: portion}


def quantize(path: Path, out: Path, pictures: np.ndarray, chosen: set[str], per_channel: bool) -> None:
    "Write a graph with the chosen layers in int8."
    graph = onnx.load(path).graph
    quantize_static(
        path, out, Reader(graph.input[0].name, pictures), quant_format=QuantFormat.QDQ, per_channel=per_channel,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, calibrate_method=CalibrationMethod.MinMax,
        nodes_to_quantize=[*sorted(chosen), *followers(graph, chosen)])


def run_onnxruntime(path: Path) -> Callable:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.use_deterministic_compute, options.log_severity_level = 1, True, 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda pictures: session.run(None, {name: pictures})[0]


CORE = openvino.Core()


def run_openvino(model, precision: str = "f32") -> Callable:
    compiled = CORE.compile_model(model, "CPU", {
        "INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False})
    return lambda pictures: np.array(compiled([pictures])[0])


def run_torch(folder: Path) -> Callable:
    ensemble = rebuild(folder, read_json(folder / "ensemble.json")).eval()

    def run(pictures):
        with torch.inference_mode():
            return ensemble(torch.from_numpy(pictures)).numpy()

    return run


def by_nncf(path: Path, pictures: np.ndarray) -> dict[str, object]:
    "Models of OpenVINO, quantized by NNCF."
    if not find_spec("nncf"):
        print("nncf is not installed: its rows are left out")
        return {}
    import nncf
    nncf.set_log_level(logging.ERROR)
    data = nncf.Dataset([pictures[k:k + 1] for k in range(len(pictures))])
    ways = {
        "all layers": {},
        "all but depthwise": {"ignored_scope": nncf.IgnoredScope(types=["GroupConvolution"])},
    }
    if any(node.op_type == "LayerNormalization" for node in onnx.load(path).graph.node):
        ways["all layers, smoothed"] = {"model_type": nncf.ModelType.TRANSFORMER}
    return {name: nncf.quantize(CORE.read_model(path), data, preset=nncf.QuantizationPreset.MIXED,
                                subset_size=len(pictures), **options) for name, options in ways.items()}


def engines_of(folder: Path, temporary: Path, calibration: np.ndarray, few: bool = False) -> dict[tuple, Callable]:
    "(package, what is in int8, number of such layers, of) -> f(pictures)."
    path, ready = folder / "ensemble.onnx", temporary / "ready.onnx"
    quant_pre_process(path, ready, skip_symbolic_shape=True)
    layers = layers_of(onnx.load(ready).graph)
    count = len(layers)
    found = {
        ("torch", "float32", 0, count): run_torch(folder),
        ("onnxruntime", "float32", 0, count): run_onnxruntime(path),
        ("openvino", "float32", 0, count): run_openvino(CORE.read_model(path)),
        ("openvino", "bfloat16", 0, count): run_openvino(CORE.read_model(path), "bf16"),
    }
    todo = [(name, {n.name for n in layers if takes(n)}, True)
            for name, takes in choices(layers).items()]
    everything = todo[0][1]
    todo.append(("all layers, one scale a layer", everything, False))
    if few:
        todo = [todo[0], todo[2], todo[4]]
    for number, (name, chosen, per_channel) in enumerate(todo):
        out = temporary / f"{number}.onnx"
        quantize(ready, out, calibration, chosen, per_channel)
        found["onnxruntime", name, len(chosen), count] = run_onnxruntime(out)
        found["openvino", name, len(chosen), count] = run_openvino(CORE.read_model(out))
    for name, model in by_nncf(path, calibration).items():
        skipped = sum(n.kind == "depthwise" for n in layers) if "depthwise" in name else 0
        found["openvino, nncf", name, count - skipped, count] = run_openvino(model)
    return found


def in_portions(engine: Callable, pictures: np.ndarray, batch: int) -> np.ndarray:
    return np.concatenate([engine(pictures[k:k + batch]) for k in range(0, len(pictures), batch)])


def seconds_of(engines: dict, pictures: np.ndarray, batch: int, rounds: int) -> dict[tuple, float]:
    "Seconds of the processor for each picture: the engines take turns."
    taken = {way: [] for way in engines}
    for number in range(rounds + 1):
        for way, engine in engines.items():
            started = time.process_time()
            in_portions(engine, pictures, batch)
            if number:   # the first round warms up
                taken[way].append((time.process_time() - started) / len(pictures))
    return {way: statistics.median(s) for way, s in taken.items()}


def crops_of(run: Path, rows: pd.DataFrame, size: tuple[int, int]) -> np.ndarray:
    "uint8 (rows, 1, height, width)."
    images = run / "processed/cleaned_images"
    return np.stack([fit_resize(cv2.imread(str(crop_path(images, p, i)), cv2.IMREAD_GRAYSCALE), *size)
                     for p, i in zip(rows["patient_id"], rows["image_id"])])[:, None]


def real_crops(size: tuple[int, int], count: int, start: int = 0) -> np.ndarray:
    "Real mammograms, spread over the set; another start gives other ones."
    files = sorted(REAL.glob("*.png"))
    files = files[start::max(1, len(files) // count)][:count]
    return np.stack([fit_resize(cv2.imread(str(f), cv2.IMREAD_GRAYSCALE), *size) for f in files])[:, None]


def drawn_crops(size: tuple[int, int], count: int) -> np.ndarray:
    "Drawn breasts, every second one with a mass."
    rng, crops = np.random.default_rng(0), []
    for number in range(count):
        breast = make_breast(rng, "L", "MLO", (640, 512), "mass" if number % 2 else None)
        x0, y0, x1, y1 = breast.box
        crops.append(fit_resize((breast.pixels[y0:y1, x0:x1] * 255).astype(np.uint8), *size))
    return np.stack(crops)[:, None]


def score(rows: pd.DataFrame, made: np.ndarray, folds: list[int]) -> float:
    "AUC per breast, each crop by the network that it was held back from."
    columns = [folds.index(fold) for fold in rows["fold"]]
    breasts = per_breast(rows.assign(probability=made[np.arange(len(rows)), columns]))
    return auc(breasts["cancer"], breasts["probability"])


def measured(name: str, engines: dict, sets: dict[str, np.ndarray], args, scored=None) -> list[dict]:
    "Rows of one ensemble; `scored` gives an AUC for the results of the first set."
    first = next(iter(sets.values()))
    answers = {way: {s: in_portions(e, p, args.batch) for s, p in sets.items()} for way, e in engines.items()}
    seconds = seconds_of(engines, first[:args.timed], args.batch, args.rounds)
    exact = next(iter(answers.values()))
    fastest = min(s for way, s in seconds.items() if way[1] == "float32")
    rows = []
    for way, made in answers.items():
        moved = {s: float(np.abs(m - exact[s]).max()) for s, m in made.items()}
        row = {"ensemble": name, "package": way[0], "int8": way[1], "layers": way[2], "of": way[3],
               "ms_an_image": round(1e3 * seconds[way], 2),
               "times_eager": round(next(iter(seconds.values())) / seconds[way], 2),
               "times_best_float32": round(fastest / seconds[way], 2),
               **{f"difference_{s}": f"{d:.1e}" for s, d in moved.items()}}
        within = max(moved.values()) <= LIMIT
        if scored:
            change = scored(next(iter(made.values()))) - scored(next(iter(exact.values())))
            row |= {"auc": round(scored(next(iter(made.values()))), 4), "auc_change": round(change, 4)}
            within = within and abs(change) <= AUC_LIMIT
        rows.append({**row, "within": within})
    return rows


def of_run(run: Path, args, temporary: Path) -> list[dict]:
    "A trained ensemble on the crops of its run."
    folder = run / "weights"
    about = read_json(folder / "ensemble.json")
    size, folds = tuple(about["size"]), [int(Path(w).stem.split("_")[1]) for w in about["rebuild"]["weights"]]
    oof = read_table(run / "oof.csv", ["probability"])
    oof = oof[oof["fold"].isin(folds)]
    patients = np.random.default_rng(0).permutation(oof["patient_id"].unique())
    place = oof["patient_id"].map({p: k for k, p in enumerate(patients)})
    oof = oof.assign(place=place).sort_values("place", kind="stable")
    calibration = oof[:args.calibration]
    rows = oof[oof["place"] > calibration["place"].max()][:args.scored].reset_index(drop=True)
    sets = {"crops": crops_of(run, rows, size), "drawn": drawn_crops(size, args.others)}
    if REAL.is_dir():
        sets["real"] = real_crops(size, args.others)
    engines = engines_of(folder, temporary, crops_of(run, calibration, size), args.few)
    print(f"{run.name}: {len(calibration)} crops for the ranges, {len(rows)} scored, "
          f"{rows.groupby(['patient_id', 'laterality']).ngroups} breasts", flush=True)
    name = f"{about['folds']} x {about['network']} at {size[0]}x{size[1]} of {run.name}"
    return measured(name, engines, sets, args, lambda made: score(rows, made, folds))


def of_convnext(args, temporary: Path) -> list[dict]:
    "A network with random weights on real mammograms."
    size = tuple(args.size)
    folder = random_ensemble(temporary, args.network, 1, size)
    (temporary / "made").mkdir()
    engines = engines_of(folder, temporary / "made", real_crops(size, args.calibration // 2, 1),
                         few=True)
    return measured(f"1 x {args.network} at {size[0]}x{size[1]}, random weights", engines,
                    {"real": real_crops(size, args.others), "drawn": drawn_crops(size, args.others)}, args)


def write_table(rows: list[dict], out: Path) -> None:
    packages = ["onnxruntime", "openvino", "torch", *(["nncf"] if find_spec("nncf") else [])]
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    flags = next((line for line in lines if line.startswith("flags")), "").split()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")
    units = " ".join(f for f in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8") if f in flags)
    table = pd.DataFrame(rows).assign(device=f"{model} ({units})", threads=1,
                                      versions=" ".join(f"{p} {version(p)}" for p in packages))
    if out.exists():   # other ensembles keep their rows
        known = pd.read_csv(out)
        pd.concat([known[~known["ensemble"].isin(table["ensemble"])], table]).to_csv(out, index=False)
    else:
        table.to_csv(out, index=False)
    print(table.to_string(index=False), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, nargs="*", default=[Path("runs/demo")])
    parser.add_argument("--network", default="convnext_small.fb_in22k_ft_in1k_384", help="'' to leave it out")
    parser.add_argument("--size", type=int, nargs=2, default=(256, 128), help="of the network's input")
    parser.add_argument("--calibration", type=int, default=64, help="crops from which ranges are taken")
    parser.add_argument("--scored", type=int, default=400, help="most crops of a run that are scored")
    parser.add_argument("--others", type=int, default=16, help="real mammograms, and as many drawn ones")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--timed", type=int, default=8, help="crops of a round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--few", action="store_true", help="fewer choices of layers, as for the network")
    parser.add_argument("--out", type=Path, default=RESULTS / "int8.csv")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for run in args.runs:
        with tempfile.TemporaryDirectory() as temporary:
            rows += of_run(run, args, Path(temporary))
        write_table(rows, args.out)
    if args.network and REAL.is_dir():
        with tempfile.TemporaryDirectory() as temporary:
            rows += of_convnext(args, Path(temporary))
        write_table(rows, args.out)


if __name__ == "__main__":
    main()
