"""Encoders of PNG on 8-bit crops of 2048x1024: processor time and size of each against OpenCV's, in turn, one thread.
`.venv/bin/python tests/bench/png.py FOLDER... > tests/bench/results/png.csv`; folders of real DICOM files are added to
three drawn crops. `isal`, `zlib-ng` and `fpng_py` are measured where they are installed. Pixels of every file are
compared.
"""
import statistics
import struct
import sys
import time
import zlib
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import pandas as pd

from mammo_nb.core.dicom import find_files
from mammo_nb.mammo.crops import cut_breast
from mammo_nb.mammo.drawing.breast import make_breast
from mammo_nb.mammo.reading.mammograms import read_frame
from mammo_nb.mammo.recipes import Crops

ROUNDS, BEFORE = 9, "opencv, run lengths, Sub"


def filtered(x: np.ndarray, kind: int) -> np.ndarray:
    "Rows after the filter Sub (1), Up (2) or Average (3) of ISO 15948."
    rows, around = np.empty((len(x), 1 + x.shape[1]), np.uint8), np.pad(x, ((1, 0), (1, 0)))
    left, above = around[1:, :-1], around[:-1, 1:]
    rows[:, 0] = kind
    rows[:, 1:] = x - (left if kind == 1 else above if kind == 2 else (left & above) + ((left ^ above) >> 1))
    return rows


def own(compress, kind):
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(name)))

    def encode(x):
        head = struct.pack(">IIBBBBB", x.shape[1], x.shape[0], 8, 0, 0, 0, 0)
        return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", compress(filtered(x, kind))) + chunk(
            b"IEND", b"")
    return encode


def opencv(strategy, kind):
    options = [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, strategy, cv2.IMWRITE_PNG_FILTER, kind]
    return lambda x: cv2.imencode(".png", x, options)[1].tobytes()


def by_object(module, level, strategy):
    def compress(rows):
        stream = module.compressobj(level, zlib.DEFLATED, 15, 9, strategy)
        return stream.compress(rows) + stream.flush()
    return compress


FILTERS = {1: "Sub", 2: "Up", 3: "Average"}
ways = {BEFORE: opencv(cv2.IMWRITE_PNG_STRATEGY_RLE, cv2.IMWRITE_PNG_FILTER_SUB),
        "opencv, run lengths, Average": opencv(cv2.IMWRITE_PNG_STRATEGY_RLE, cv2.IMWRITE_PNG_FILTER_AVG),
        "opencv, Huffman, Average": opencv(cv2.IMWRITE_PNG_STRATEGY_HUFFMAN_ONLY, cv2.IMWRITE_PNG_FILTER_AVG),
        "imagecodecs libpng, run lengths, Sub": lambda x: imagecodecs.png_encode(x, level=1, strategy=3, filter=16),
        "imagecodecs libpng, run lengths, Average": lambda x: imagecodecs.png_encode(x, level=1, strategy=3, filter=64),
        "imagecodecs libspng 1": lambda x: imagecodecs.spng_encode(x, level=1)}
for number, name in FILTERS.items():
    ways[f"libdeflate 1, {name}"] = own(lambda r: imagecodecs.deflate_encode(r, level=1), number)
    ways[f"imagecodecs zlib-ng 1, {name}"] = own(lambda r: imagecodecs.zlibng_encode(r, level=1), number)
    if find_spec("isal"):
        from isal import isal_zlib
        ways[f"ISA-L 1, {name}"] = own(lambda r: isal_zlib.compress(r, 1), number)
    if find_spec("zlib_ng"):
        from zlib_ng import zlib_ng
        ways[f"zlib-ng, run lengths, {name}"] = own(by_object(zlib_ng, 1, zlib.Z_RLE), number)
        ways[f"zlib-ng, Huffman, {name}"] = own(by_object(zlib_ng, 1, zlib.Z_HUFFMAN_ONLY), number)
if find_spec("fpng_py"):
    import fpng_py
    ways["fpng, in three channels"] = lambda x: fpng_py.fpng_encode_image_to_memory(
        cv2.merge([x] * 3).tobytes(), x.shape[1], x.shape[0], 3, 0)

cv2.setNumThreads(1)
crops = {}
for seed in range(3):
    drawn = make_breast(np.random.default_rng(7 + seed), "LR"[seed % 2], ("CC", "MLO")[seed % 2], (2776, 2082), "mass")
    x0, y0, x1, y1 = drawn.box
    grey = (np.clip(drawn.pixels[y0:y1, x0:x1], 0, 1) * 255).astype(np.uint8)
    ratio = min(2048 / grey.shape[0], 1024 / grey.shape[1], 1)
    crops[f"drawn {seed}"] = cv2.resize(grey, None, fx=ratio, fy=ratio, interpolation=cv2.INTER_AREA)
for folder in map(Path, sys.argv[1:]):
    for file in find_files(folder)[0]:
        frame = read_frame(folder / file, 0)
        if frame.header.frames == 1:
            crops[Path(file).stem] = np.ascontiguousarray(cut_breast(frame, Crops(height=2048, width=1024)).grey)
rows = []
for name, picture in crops.items():
    seconds, sizes = {way: [] for way in ways}, {}
    for turn in range(ROUNDS + 1):
        for way, encode in ways.items():
            started = time.process_time()
            data = encode(picture)
            took = time.process_time() - started
            if turn:
                seconds[way].append(took)
                continue
            read = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
            assert np.array_equal(read, picture), (name, way)
            sizes[way] = len(data)
    for way, s in seconds.items():
        rows.append({"crop": name, "rows": picture.shape[0], "columns": picture.shape[1], "encoder": way,
                     "min_ms": round(1e3 * min(s), 2), "median_ms": round(1e3 * statistics.median(s), 2),
                     "time_of_before": round(min(s) / min(seconds[BEFORE]), 2), "bytes": sizes[way],
                     "size_of_before": round(sizes[way] / sizes[BEFORE], 3)})
cpu = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "")
packages = " ".join(f"{p} {version(p)}" for p in ("imagecodecs", "opencv-python", "isal", "zlib-ng", "fpng-py")
                    if find_spec(p.replace("-", "_").replace("opencv_python", "cv2")))
pd.DataFrame(rows).assign(cpu=cpu, versions=packages).to_csv(sys.stdout, index=False)
