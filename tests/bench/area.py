"""A trial: only the area of the breast, decoded out of JPEG 2000, by bindings that this project does not install.
`python -m venv V && V/bin/pip install rasterio glymur packaging pyvips pyvips-binary pydicom pandas imagecodecs pillow`
(and OpenJPEG for glymur), then `V/bin/python tests/bench/area.py FILE.dcm... > tests/bench/results/area.csv`

Of each file the left half without the upper and lower 400 rows is read, at full, half and quarter size, and compared
with the same area of the library's whole decode, bit for bit. Pillow's whole decode at the same size is what the
project does. Tiled, lossy, signed and boxed streams of a small picture are compared by the same rule, without times.
"""
import io
import os
import sys
import tempfile
import time
import warnings
from importlib.metadata import version
from pathlib import Path

os.environ |= {"GDAL_NUM_THREADS": "1", "VIPS_CONCURRENCY": "1", "OPJ_NUM_THREADS": "1"}
import glymur  # noqa: E402
import imagecodecs  # noqa: E402
import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import pydicom  # noqa: E402
import pyvips  # noqa: E402
import rasterio  # noqa: E402
from PIL import Image  # noqa: E402
from pydicom.encaps import generate_frames  # noqa: E402
from rasterio.io import MemoryFile  # noqa: E402
from rasterio.windows import Window  # noqa: E402

ROUNDS = 5
warnings.simplefilter("ignore")


def by_pillow(frame, path, area, halvings):
    image = Image.open(io.BytesIO(frame))
    image.reduce = halvings
    image._size = tuple(-(-side // 2**halvings) * 2**halvings for side in image.size)
    image.load()
    return np.asarray(image)


def by_glymur(frame, path, area, halvings):
    step = 2**halvings
    if area is None:
        return glymur.Jp2k(path)[::step, ::step]
    r0, r1, c0, c1 = area
    return glymur.Jp2k(path)[r0:r1:step, c0:c1:step]


def by_rasterio(frame, path, area, halvings):
    with MemoryFile(frame, ext=path.suffix) as memory:
        with (memory.open(overview_level=halvings - 1) if halvings else memory.open()) as source:
            if area is None:
                return source.read(1)
            r0, r1, c0, c1 = (-(-place // 2**halvings) for place in area)
            return source.read(1, window=Window(c0, r0, c1 - c0, r1 - r0))


def by_pyvips(frame, path, area, halvings):
    image = pyvips.Image.new_from_buffer(frame, "", page=halvings)
    if area is not None:
        r0, r1, c0, c1 = (-(-place // 2**halvings) for place in area)
        image = image.crop(c0, r0, c1 - c0, r1 - r0)
    return image.numpy()


LIBRARIES = {"glymur": by_glymur, "rasterio": by_rasterio, "pyvips": by_pyvips}


def measure(frame, path, area, halvings, rounds) -> list[dict]:
    "Times of whole and area in turn, and whether the area has the pixels of the whole."
    ways = {("pillow", "whole"): lambda: by_pillow(frame, path, None, halvings)}
    for name, read in LIBRARIES.items():
        ways[name, "whole"] = lambda read=read: read(frame, path, None, halvings)
        ways[name, "area"] = lambda read=read: read(frame, path, area, halvings)
    seconds, pixels, found = {}, {}, []
    for _ in range(rounds):
        for way, read in ways.items():
            started = time.perf_counter()
            try:
                pixels[way] = read()
            except Exception as e:
                pixels[way] = f"{type(e).__name__}: {' '.join(str(e).split('/vsimem')[0].split())}"
            seconds.setdefault(way, []).append(time.perf_counter() - started)
    r0, r1, c0, c1 = (-(-place // 2**halvings) for place in area)
    for (name, what), s in seconds.items():
        got, whole = pixels[name, what], pixels[name, "whole"]
        row = {"library": name, "read": what, "ms": round(1e3 * min(s), 1) if rounds > 1 else "",
               "of_pillow_whole": round(min(s) / min(seconds["pillow", "whole"]), 2) if rounds > 1 else ""}
        if isinstance(got, str):
            row |= {"ms": "", "of_pillow_whole": "", "result": got}
        elif what == "area" and not isinstance(whole, str):
            same = got.shape == whole[r0:r1, c0:c1].shape and bool((got == whole[r0:r1, c0:c1]).all())
            row["result"] = "equal" if same else "differs"
        found.append(row)
    return found


rows = []
with tempfile.TemporaryDirectory() as scratch:
    for file in map(Path, sys.argv[1:]):
        ds = pydicom.dcmread(file)
        frame = next(generate_frames(ds.PixelData, number_of_frames=1))
        path = Path(scratch) / f"{file.stem}.j2k"
        path.write_bytes(frame)
        area = 400, ds.Rows - 400, 0, ds.Columns // 2
        for halvings in (0, 1, 2):
            rounds = ROUNDS if halvings else 2
            rows += [{"file": file.stem, "size": f"1/{2**halvings}"} | r
                     for r in measure(frame, path, area, halvings, rounds)]
    y, x = np.mgrid[:403, :361]
    small = (np.hypot(x, y - 200) * 9 + np.random.default_rng(0).integers(0, 99, x.shape)).astype(np.uint16)

    def tiled():
        out = io.BytesIO()
        Image.fromarray((small >> 5).astype(np.uint8)).save(out, "JPEG2000", tile_size=(61, 45), irreversible=False,
                                                            no_jp2=True)
        return out.getvalue()

    encode = lambda pixels, **how: imagecodecs.jpeg2k_encode(pixels, **{"level": 0, "codecformat": "j2k",
                                                                        "reversible": True} | how)
    streams = {"12 bits.j2k": encode(small, bitspersample=12), "boxes.jp2": encode(small, codecformat="jp2"),
               "signed.j2k": encode(small.astype(np.int16) - 2048, bitspersample=12), "tiles.j2k": tiled(),
               "lossy.j2k": encode(small, level=40, reversible=False),
               "high throughput.j2k": imagecodecs.htj2k_encode(small)}
    for name, frame in streams.items():
        path = Path(scratch) / name
        path.write_bytes(frame)
        for halvings in (0, 1, 2):
            rows += [{"file": f"403x361, {Path(name).stem}", "size": f"1/{2**halvings}"} | r
                     for r in measure(frame, path, (83, 301, 40, 250), halvings, 1)]
cpu = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "")
packages = " ".join(f"{p} {version(p)}" for p in ("rasterio", "glymur", "pyvips", "pillow", "imagecodecs"))
packages += f" GDAL {rasterio.__gdal_version__} OpenJPEG of glymur {glymur.version.openjpeg_version}"
pd.DataFrame(rows).assign(cpu=cpu, versions=packages).to_csv(sys.stdout, index=False)
