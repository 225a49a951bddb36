"Damaged real files: each gives a typed error or correct pixels, none hangs, and no process is lost."
import hashlib
import io
import resource
import signal
import struct
import warnings

import numpy as np
import pydicom
import pytest
from conftest import SHARED

from mammo_nb.core.dicom import Image, read_frame, read_image
from mammo_nb.core.headers import DicomError
from mammo_nb.core.parallel import map_files
from mammo_nb.mammo.crops import cut_breast

SYNTAXES = [
    "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2",
    "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70",
    "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.5", "1.2.3.4"
]
FILES = [
    "mammo/ge_senographe_RMLO_GH133.dcm", "mammo/ddsm_P_00173_benign_L_CC.dcm", "mammo/dbt_4frames_128.dcm",
    "dicom/wg04/*.dcm", "dicom/ct_by_syntax/*.dcm", "dicom/pydicom/*.dcm"
]
KINDS = ["cut", "flip header", "flip anywhere", "Rows", "Columns", "BitsStored", "syntax", "window"]
PER_FILE = 24  # mutations of a file; each kind three times


def place(data: bytes, keyword: str) -> tuple[int, str]:
    "Offset of an element in bytes, -1 if it is not found, and the byte order. Deflated files have no visible elements."
    ds = pydicom.dcmread(io.BytesIO(data), force=True, stop_before_pixels=True)
    order, tag = "<" if ds.original_encoding[1] else ">", pydicom.tag.Tag(keyword)
    return data.find(struct.pack(f"{order}HH", tag.group, tag.element)), order


def with_number(data: bytes, keyword: str, value: int) -> bytes:
    at, order = place(data, keyword)
    return data if at < 0 else data[:at + 8] + struct.pack(f"{order}H", value) + data[at + 10:]


def without(data: bytes, keyword: str) -> bytes:
    "Change the tag of an element to an unknown one."
    at, order = place(data, keyword)
    return data if at < 0 else data[:at + 2] + struct.pack(f"{order}H", 0x10EE) + data[at + 4:]


def with_syntax(data: bytes, rng: np.random.Generator) -> bytes:
    old = str(pydicom.dcmread(io.BytesIO(data), force=True,
                              stop_before_pixels=True).file_meta.TransferSyntaxUID).encode()
    new = [s.encode() for s in SYNTAXES if len(s) <= len(old) and s.encode() != old]
    return data.replace(old, rng.choice(new).ljust(len(old), b"\0"), 1)


def mutant(data: bytes, kind: str, rng: np.random.Generator) -> bytes:
    "Make a damaged copy."
    if kind == "cut":
        return data[:rng.integers(1, len(data))]
    if kind.startswith("flip"):
        damaged = bytearray(data)
        end = min(len(data), 3000) if kind == "flip header" else len(data)
        for at in rng.integers(128, end, rng.integers(1, 6)):
            damaged[at] ^= 1 << rng.integers(8)
        return bytes(damaged)
    if kind == "syntax":
        return with_syntax(data, rng)
    if kind == "window":
        return without(data, str(rng.choice(["WindowCenter", "WindowWidth"])))
    if kind == "BitsStored":
        return with_number(data, kind, int(rng.integers(0, 20)))
    return with_number(data, kind, int(rng.choice([0, 1, 2, 100, 500, 513, 3000, 60_000])))


def distance(whole: np.ndarray, small: Image) -> float:
    """Mean of a smaller decode minus that of the areas, as a share of the range of the values: fine grain is smoothed
    otherwise by the wavelet, but values that wrap move the mean."""
    step = round(1 / small.scale)
    rows, columns = (side // step for side in whole.shape)
    if not rows or not columns:
        return 0.0
    means = whole[:rows * step, :columns * step].reshape(rows, step, columns, step).mean((1, 3))
    return float(abs((small.pixels[:rows, :columns] - means).mean()) / max(1.0, np.ptp(whole.astype(float))))


def read(item):
    "Read a damaged file as the pipeline does. An alarm ends a hang, and a limit prevents huge allocations."
    def stop(*_):
        raise TimeoutError("more than 10 s")

    signal.signal(signal.SIGALRM, stop)
    resource.setrlimit(resource.RLIMIT_AS, (12 << 30, resource.getrlimit(resource.RLIMIT_AS)[1]))
    signal.alarm(10)
    try:
        frame = read_frame(item["file"], frame=0)
        image = frame.decode()
        apart = max(distance(image.pixels, frame.decode(scale)) for scale in (.5, .25))
        cut_breast(frame)
    except DicomError as e:
        return {"outcome": type(e).__name__}
    except ValueError as e:
        if type(e).__name__ != "WindowError":
            raise
        return {"outcome": "WindowError"}
    finally:
        signal.alarm(0)
    return {
        "outcome": "read", "apart": apart, "shape": image.pixels.shape == (image.header.rows, image.header.columns),
        "sha": hashlib.sha256(np.ascontiguousarray(image.pixels, np.int64)).hexdigest()
    }


def differing(path: str) -> float:
    "Share of the pixels with another value in pydicom; 0 if pydicom cannot read the picture."
    ours = read_image(path, frame=0).pixels
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            theirs = pydicom.dcmread(path, force=True).pixel_array
        except Exception:
            return 0
    return float((ours != (theirs[0] if theirs.ndim == 3 else theirs)).mean())


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the real files in ../shared/data")
def test_damaged_real_files(tmp_path):
    items, originals = [], {}
    for n, path in enumerate(sorted(p for pattern in FILES for p in SHARED.glob(pattern))):
        data = path.read_bytes()
        try:
            originals[n] = hashlib.sha256(np.ascontiguousarray(read_image(path, frame=0).pixels, np.int64)).hexdigest()
        except DicomError:
            continue
        for i in range(PER_FILE if len(data) < 4_000_000 else 8):
            kind = KINDS[i % len(KINDS)]
            name = tmp_path / f"{n}_{i}.dcm"
            name.write_bytes(mutant(data, kind, np.random.default_rng([n, i])))
            items.append({"file": name, "original": n, "kind": kind, "of": path.name})
    assert len(items) >= 500
    table = map_files(read, items, table=tmp_path / "outcome.csv", workers=2)
    # there is no other error, no hang and no lost process
    assert (table["error"] == "").all(), table.loc[table["error"] != "", ["file", "error"]].to_string()
    table["kind"], table["of"] = [i["kind"] for i in items], [i["of"] for i in items]
    seen = table[table["outcome"] == "read"]
    assert seen["shape"].all()
    same = seen["sha"] == [originals[items[i]["original"]] for i in seen.index]
    wrong = seen[~same & ~seen["kind"].str.startswith("flip")]
    assert wrong.empty, wrong[["of", "kind"]].to_string()
    # half and quarter show what the whole does; in damaged pixels the wavelet itself makes another picture
    assert (seen.loc[~seen["kind"].str.startswith("flip"), "apart"] < 0.03).all()
    # flipped bits of the pixels are not detectable; then the values must be those of an independent reader
    for row in seen[~same].itertuples():
        assert differing(row.file) < 1e-3, (row.of, row.kind)
