"""The order of the decoders in nbs/core/23_decoders.py: every installed library on a 3062x2394 frame of 12 bits in
every
compression it serves, one core, in turn. `.venv/bin/python tests/bench/decoders.py >
tests/bench/results/decoders.csv`"""
import platform
import statistics
import sys
import time
from importlib.metadata import version
from types import SimpleNamespace

import imagecodecs
import numpy as np
import pandas as pd
from pydicom.pixels import get_encoder
from pydicom.uid import (HTJ2KLossless, JPEG2000Lossless, JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLosslessSV1,
                         JPEGLSLossless, RLELossless)

from mammo_nb.core.decoders import DECODERS, REDUCED, decoders_for, read_codestream
from mammo_nb.mammo.drawing.breast import make_breast
from mammo_nb.mammo.drawing.machines import MACHINES, stored_values

ROUNDS, ROWS, COLUMNS = 7, 3062, 2394
pixels, _ = stored_values(
    make_breast(np.random.default_rng(7), "L", "MLO", (ROWS, COLUMNS), "mass").pixels, MACHINES[0])
rle = get_encoder(RLELossless).encode(pixels, rows=ROWS, columns=COLUMNS, samples_per_pixel=1,
                                      photometric_interpretation="MONOCHROME2", number_of_frames=1, bits_allocated=16,
                                      bits_stored=12, pixel_representation=0)
FRAMES = {
    JPEG2000Lossless: imagecodecs.jpeg2k_encode(pixels, level=0, codecformat="j2k", reversible=True,
                                                bitspersample=12), HTJ2KLossless: imagecodecs.htj2k_encode(pixels),
    JPEGLSLossless: imagecodecs.jpegls_encode(pixels), JPEGLosslessSV1: imagecodecs.jpeg_encode(
        pixels, lossless=True, predictor=1,
        bitspersample=12), RLELossless: bytes(rle), JPEGBaseline8Bit: imagecodecs.jpeg_encode((pixels >> 4).astype(
            np.uint8), level=95), JPEGExtended12Bit: imagecodecs.jpeg_encode(pixels, level=95, bitspersample=12)
}

todo, seconds = {}, {}
for syntax, frame in FRAMES.items():
    bits = 8 if syntax == JPEGBaseline8Bit else 12
    header = SimpleNamespace(syntax=syntax, rows=ROWS, columns=COLUMNS, bits_allocated=8 if bits == 8 else 16,
                             bits_stored=bits, high_bit=bits - 1, signed=False)
    coded = None if syntax == RLELossless else read_codestream(frame)
    for halvings in (0, 1, 2) if syntax in REDUCED else (0,):
        for name in decoders_for(syntax, halvings):
            todo[syntax.keyword, name,
                 2**-halvings] = lambda n=name, f=frame, c=coded, h=header, k=halvings: DECODERS[n].decode(f, c, h, k)
for turn in range(ROUNDS + 1):  # the first warms up
    for key, decode in todo.items():
        started = time.perf_counter()
        decode()
        if turn:
            seconds.setdefault(key, []).append(time.perf_counter() - started)

cpu = next(
    (line.split(":")[1].strip() for line in open("/proc/cpuinfo")
     if line.startswith("model name")), platform.processor()) if sys.platform == "linux" else platform.processor()
versions = " ".join(f"{p} {version(p)}" for p in ("imagecodecs", "dicomsdl", "pylibjpeg-openjpeg", "pylibjpeg-libjpeg",
                                                  "pylibjpeg-rle", "pillow", "python-gdcm"))
pd.DataFrame([{
    "syntax": s, "decoder": d, "scale": k, "runs": ROUNDS, "min_ms": round(1e3 * min(t), 1), "median_ms": round(
        1e3 * statistics.median(t), 1)
} for (s, d, k), t in seconds.items()]).assign(cpu=cpu, python=platform.python_version(), versions=versions).to_csv(
    sys.stdout, index=False)
