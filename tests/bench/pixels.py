"""From a DICOM file to a crop on disk: decoders alone, the published ways and ours, on phantoms of real size, one
core, in turn.
`.venv/bin/python tests/bench/pixels.py > tests/bench/results/pixels.csv`

a  decode only, from memory, each library; `a` is the best of them
b  the baseline's way (facts: baseline-convnext-tiny): dicomsdl, min-max, Otsu, 2:1, 2048x1024, PNG at compression 7
c  the winner's way on a CPU (facts: mammography, section 3): dicomsdl, int16, box by Otsu in place of its detector,
window
   and resize as floats to 2048x1024, PNG of three channels
d  ours to 2048x1024, e to 1536x768, f to 1024x512: box, crop, window, PNG
two  copies of each file by d, one process and two
"""
import platform
import statistics
import sys
import tempfile
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import cv2
import dicomsdl
import joblib
import numpy as np
import pandas as pd
import torch
from pydicom.uid import JPEG2000Lossless, JPEGLosslessSV1

from mammo_nb.core.decoders import DECODERS, decoders_for, read_codestream
from mammo_nb.core.dicom import Image, read_frame, read_header
from mammo_nb.core.parallel import map_files
from mammo_nb.mammo.reading import faithful
from mammo_nb.mammo.drawing.breast import make_breast
from mammo_nb.mammo.reading.boxes import find_box
from mammo_nb.mammo.crops import crop_file, faithful_floats
from mammo_nb.mammo.drawing.machines import MACHINES, stored_values, write_dicom
from mammo_nb.mammo.recipes import Crops

ROUNDS = 7
FILES = [("J2K 5355x4915x16", (5355, 4915), 16, JPEG2000Lossless),
         ("J2K 2776x2082x12", (2776, 2082), 12, JPEG2000Lossless),
         ("JPEG Lossless 3062x2394x12", (3062, 2394), 12, JPEGLosslessSV1)]
COPIES = {(5355, 4915): 8, (2776, 2082): 16, (3062, 2394): 48}  # for one process and two: seconds of work
SIZES = {"d": (2048, 1024), "e": (1536, 768), "f": (1024, 512)}


def phantom(folder: Path, name: str, frame: tuple, bits: int, syntax: str) -> Path:
    machine = next(m for m in MACHINES if m.bits_stored == bits and m.photometric == "MONOCHROME2")
    stored, windows = stored_values(make_breast(np.random.default_rng(7), "L", "MLO", frame, "mass").pixels, machine)
    path = folder / f"{name.replace(' ', '_')}.dcm"
    write_dicom(path, stored, patient_id="1", image_id="2", laterality="L", view="MLO", syntax=syntax,
                photometric="MONOCHROME2", bits_stored=bits, windows=windows, voi_function=machine.voi_function)
    return path


def baseline(path: Path, out: Path):
    x = dicomsdl.open(str(path)).pixelData()
    header = read_header(path)
    x = x.max() - x if header.photometric == "MONOCHROME1" else x - x.min()
    grey = (x / x.max() * 255).astype(np.uint8)
    _, mask = cv2.threshold(cv2.GaussianBlur(grey, (5, 5), 0), 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    x0, y0, w, h = cv2.boundingRect(max(contours, key=cv2.contourArea))
    cut = grey[y0:y0 + h, x0:x0 + w]
    cut = cv2.copyMakeBorder(cut, max(0, 2 * w - h), 0, max(0, (h + 1) // 2 - w), 0, cv2.BORDER_CONSTANT, value=0)
    cv2.imwrite(str(out), cv2.resize(cut, (1024, 2048), interpolation=cv2.INTER_LINEAR),
                [cv2.IMWRITE_PNG_COMPRESSION, 7])


def winner(path: Path, out: Path):
    header, settings = read_header(path), Crops(faithful=True)
    image = Image(header, dicomsdl.open(str(path)).pixelData(storedvalue=True), "dicomsdl")
    grey = faithful.network_input(faithful_floats(image, find_box(image, settings), settings), 2048, 1024)
    cv2.imwrite(str(out), cv2.merge([grey] * 3))


def ours(path: Path, out: Path, size: tuple):
    crop_file({
        "file": path.name, "folder": str(path.parent), "images": str(out.parent), "patient_id": "o", "image_id": "1",
        "settings": asdict(Crops(height=size[0], width=size[1]))
    })


def ways(path: Path, out: Path) -> dict:
    frame = read_frame(path)
    coded = read_codestream(frame.data)
    decode = lambda name: lambda: DECODERS[name].decode(frame.data, coded, frame.header, 0)
    return {
        **{
            f"a {name}": decode(name) for name in decoders_for(frame.header.syntax) if name != "gdcm"
        }, "b": lambda: baseline(path, out), "c": lambda: winner(path, out),
        **{key: lambda size=size: ours(path, out, size) for key, size in SIZES.items()}
    }


def in_processes(path: Path, folder: Path, copies: int, workers: int) -> float:
    items = [{
        "file": f"{i}.dcm", "folder": str(folder), "images": str(folder), "patient_id": "p", "image_id": str(i),
        "settings": asdict(Crops(height=2048, width=1024))
    } for i in range(copies)]
    for item in items:
        if not (folder / item["file"]).exists():
            (folder / item["file"]).hardlink_to(path)
    started = time.perf_counter()
    table = map_files(crop_file, items, table=folder / "t.csv", workers=workers)
    assert (table["error"] == "").all()
    return time.perf_counter() - started


cv2.setNumThreads(1)
torch.set_num_threads(1)
rows = []
with tempfile.TemporaryDirectory() as scratch:
    scratch = Path(scratch)
    for name, frame, bits, syntax in FILES:
        path = phantom(scratch, name, frame, bits, syntax)
        seconds = {}
        todo = ways(path, scratch / "out.png")
        for turn in range(ROUNDS + 1):  # the first warms up
            for key, way in todo.items():
                started = time.perf_counter()
                way()
                if turn:
                    seconds.setdefault(key, []).append(time.perf_counter() - started)
        folder = scratch / path.stem
        folder.mkdir()
        for turn in range(6):
            for workers in (1, 2):
                took = in_processes(path, folder, COPIES[frame], workers)
                if turn:
                    seconds.setdefault(f"two: {workers} process{'es' * (workers > 1)}", []).append(took)
        median = {key: statistics.median(s) for key, s in seconds.items()}
        best = min((key for key in median if key.startswith("a ")), key=median.get)
        for key, s in seconds.items():
            rows.append({
                "file": name, "bytes": path.stat().st_size, "way": "a" if key == best else key,
                "decoder": best[2:] if key == best else "", "runs": len(s), "min_ms": round(
                    1e3 * min(s), 1), "median_ms": round(
                        1e3 * median[key],
                        1), "of_a": round(median[key] / median[best], 2) if not key.startswith("two") else "",
                "faster_than_b": round(median["b"] / median[key], 2) if key in SIZES else "",
                "two_of_one": round(median["two: 1 process"] / median[key], 2) if key == "two: 2 processes" else ""
            })

cpu = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")),
           platform.processor()) if Path("/proc/cpuinfo").exists() else platform.processor()
versions = " ".join(f"{p} {version(p)}" for p in ("imagecodecs", "dicomsdl", "pylibjpeg-openjpeg", "pylibjpeg-libjpeg",
                                                  "pillow", "opencv-python", "numpy", "torch"))
pd.DataFrame(rows).assign(cpu=f"{cpu}, {joblib.cpu_count()} cores", python=platform.python_version(),
                          versions=versions).to_csv(sys.stdout, index=False)
