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
# # Decoders
# > One table of decoding libraries, and one function that turns a compressed frame into stored values.
#
# Most of the time of a large data set goes into decoding: a competition of fifty thousand images is 315 GB, nearly all
# of it JPEG 2000. Half a dozen libraries decode it. Each is fast for different compressions, and each treats damaged
# files differently. `decode` takes the fastest correct one, or another if that one raises an error. It decodes no more
# of the frame than is needed.

# %%
#| default_exp core.decoders

# %% tags=["parameters"]
rows, columns = 1280, 1024   # size of the frame made below, pixels
bits = 12                    # bits stored of 16 allocated

# %%
#| export
import io
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, JPEGBaseline8Bit, JPEGExtended12Bit, RLELossless

from mammo_nb.core.codestreams import (HIGH_THROUGHPUT, JPEG_2000, JPEG_LS, LOSSLESS_JPEG, LOSSY, MARKERS, Codestream,
                                       read_codestream, stored_values)

# %%
#| hide
import time
from types import SimpleNamespace

import imagecodecs
import matplotlib.pyplot as plt
import pandas as pd
from pydicom.uid import HTJ2KLossless, JPEG2000Lossless, JPEGLosslessSV1, JPEGLSLossless

# %% [markdown]
# A picture in four compressions, for the cells below:

# %%
y, x = np.mgrid[:rows, :columns] / rows
disc = np.sqrt(np.clip(1 - (x / .7)**2 - (2.1 * y - 1)**2, 0, 1))
noise = np.random.default_rng(0).normal(0, 25, (rows, columns))
picture = np.clip(disc * 2400 + noise, 0, 2**bits - 1).astype(np.uint16)
coded = {
    JPEG2000Lossless: imagecodecs.jpeg2k_encode(picture, level=0, codecformat="j2k", reversible=True,
                                                bitspersample=bits),
    HTJ2KLossless: imagecodecs.htj2k_encode(picture),
    JPEGLSLossless: imagecodecs.jpegls_encode(picture),
    JPEGLosslessSV1: imagecodecs.jpeg_encode(picture, lossless=True, predictor=1, bitspersample=bits),
}
header = lambda syntax: SimpleNamespace(syntax=syntax, rows=rows, columns=columns, bits_allocated=16, bits_stored=bits,
                                        high_bit=bits - 1, signed=False)
pd.DataFrame({syntax.keyword: vars(read_codestream(frame)) for syntax, frame in coded.items()})

# %% [markdown]
# ## One function for each library
# Each function takes the bytes of a frame and returns numbers. Sign and bits of the header are settled afterwards, in
# one place. A library is imported when it is first used, and need not be installed.

# %%
#| export
def _imagecodecs(frame, coded, header, halvings):
    import imagecodecs
    if header.syntax in JPEG_2000:
        return imagecodecs.jpeg2k_decode(frame)
    if header.syntax in HIGH_THROUGHPUT:
        return imagecodecs.htj2k_decode(frame)
    if header.syntax in JPEG_LS:
        return imagecodecs.jpegls_decode(frame)
    if header.syntax == RLELossless:
        return _planes(imagecodecs.dicomrle_decode(frame, f"<u{header.bits_allocated // 8}"), header)
    return imagecodecs.jpeg_decode(frame)

def _pylibjpeg(frame, coded, header, halvings):
    if header.syntax == RLELossless:
        return _segments(frame, header)
    if header.syntax in JPEG_2000 + HIGH_THROUGHPUT:
        import openjpeg
        return openjpeg.decode(frame)
    import libjpeg
    return libjpeg.decode(frame)

def _segments(frame, header):
    """RLE, PS3.5 annex G: a segment for each byte of a pixel, the highest first; each must fill the picture, no more
    and no less."""
    from rle.rle import decode_segment, parse_header
    size, starts = header.rows * header.columns, [start for start in parse_header(frame[:64]) if start]
    planes = np.empty((size, header.bits_allocated // 8), np.uint8)
    if len(starts) != planes.shape[1]:
        raise ValueError(f"{len(starts)} segments for {planes.shape[1]} bytes a pixel")
    for plane, start, end in zip(planes.T[::-1], starts, starts[1:] + [len(frame)]):
        segment = decode_segment(frame[start:end])
        if len(segment) != size:
            raise ValueError(f"a segment of {len(segment)} bytes for {size} pixels")
        plane[:] = np.frombuffer(segment, np.uint8)
    return planes.view(f"<u{planes.shape[1]}").reshape(header.rows, header.columns)

def _planes(data, header):
    "Little-endian bytes as an array."
    return np.frombuffer(data, f"<u{header.bits_allocated // 8}").reshape(header.rows, header.columns)

def _pillow(frame, coded, header, halvings):
    from PIL import Image
    start = max(0, frame.find(b"\xff\x4f\xff\x51"))  # without a JP2 wrapper, whose 9 bits Pillow takes for 8
    with Image.open(io.BytesIO(frame[start:])) as image:
        image.reduce = halvings
        # Pillow rounds the reduced size; the codec rounds it up
        image._size = tuple(-(-side // 2**halvings) * 2**halvings for side in image.size)
        image.load()
        values = np.asarray(image)
    if header.syntax == JPEGBaseline8Bit:
        return values
    # Pillow fills its container of 8 or 16 bits from the top, and lifts signed values above zero
    values = values >> (8 * values.dtype.itemsize - coded.precision)
    return values.astype(np.int32) - (1 << coded.precision - 1) if coded.signed else values

def _dicomsdl(frame, coded, header, halvings):
    import dicomsdl
    dicomsdl.set_loglevel(dicomsdl.LogLevel.DISABLE)  # what it would log is in its exception
    # without storedvalue, dicomsdl applies slope and intercept
    return dicomsdl.open_memory(_wrapped(frame, header)).pixelData(0, storedvalue=True)

def _wrapped(frame, header):
    "A DICOM file of one frame and nothing else, for a library that takes whole files only."
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = header.syntax
    ds.SOPClassUID, ds.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1.2", "1.2.3"
    ds.Rows, ds.Columns, ds.SamplesPerPixel = header.rows, header.columns, 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = header.bits_allocated, header.bits_stored, header.bits_stored - 1
    ds.PixelRepresentation = int(header.signed)
    ds.PixelData = encapsulate([frame])
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = True
    file = io.BytesIO()
    ds.save_as(file, enforce_file_format=True)
    return file.getvalue()

# %% [markdown]
# GDCM ends the whole process on some damaged frames, so it runs in a process of its own. That costs half a second, and
# so it comes last. nvImageCodec needs an NVIDIA GPU. The authors had none, so `decode` below compares its first results
# with those of another library.

# %%
#| export
def _gdcm(frame, coded, header, halvings):
    bits = coded.precision if coded else header.bits_stored
    if header.syntax in LOSSLESS_JPEG:
        container = header.bits_allocated
    else:
        container = 8 if bits <= 8 else 16
    signed = coded.signed if header.syntax in JPEG_2000 else header.signed
    numbers = header.rows, header.columns, container, bits, int(signed)
    code = "from mammo_nb.core.decoders import gdcm_child; gdcm_child()"
    child = subprocess.run([sys.executable, "-c", code, header.syntax, *map(str, numbers)], input=frame,
                           capture_output=True, timeout=60)
    if child.returncode:
        raise ValueError(f"its process ended with {child.returncode}")
    values = np.frombuffer(child.stdout, f"<{'i' if signed else 'u'}{container // 8}")
    return values.reshape(header.rows, header.columns)

def gdcm_child():
    "Decode the frame on standard input to standard output: the process that `_gdcm` starts."
    import gdcm
    syntax = sys.argv[1]
    rows, columns, container, bits, signed = map(int, sys.argv[2:])
    fragment, fragments = gdcm.Fragment(), gdcm.SequenceOfFragments.New()
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    image = gdcm.Image()
    fragment.SetByteStringValue(sys.stdin.buffer.read())
    fragments.AddFragment(fragment)
    element.SetValue(fragments.__ref__())
    image.SetNumberOfDimensions(2)
    image.SetDimensions((columns, rows, 1))
    image.SetDataElement(element)
    image.SetPhotometricInterpretation(
        gdcm.PhotometricInterpretation(gdcm.PhotometricInterpretation.GetPIType("MONOCHROME2")))
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(syntax)))
    image.SetPixelFormat(gdcm.PixelFormat(1, container, bits, bits - 1, signed))
    sys.stdout.buffer.write(image.GetBuffer().encode("utf-8", "surrogateescape"))  # GDCM returns bytes as text

@cache
def _gpu():
    "nvImageCodec's decoder of this process; raises where there is no GPU."
    from nvidia import nvimgcodec
    return nvimgcodec, nvimgcodec.Decoder()

def _nvimagecodec(frame, coded, header, halvings):
    nvimgcodec, decoder = _gpu()
    image = decoder.decode(
        frame, params=nvimgcodec.DecodeParams(color_spec=nvimgcodec.ColorSpec.UNCHANGED, allow_any_depth=True))
    if image is None:
        raise ValueError("no picture")
    return np.asarray(image.cpu())[..., 0]

# %% [markdown]
# ## The table
# For each compression its decoders, fastest first (`tests/bench/decoders.py` measures the order). Some libraries are
# left out of a line for a reason: dicomsdl ends the process on a damaged RLE frame, and pylibjpeg returns a picture of
# a damaged JPEG-LS frame without an error. For JPEG 2000 dicomsdl is as fast as imagecodecs and takes a third more
# memory.

# %%
#| export
@dataclass(frozen=True)
class Decoder:
    "A library that decodes frames."
    packages: tuple    # what must be importable, all of it
    decode: Callable   # (frame, Codestream or None, header, halvings) -> (rows, columns) numbers
    proven: bool = True  # False: its first result in a process must agree with another library's

DECODERS = {
    "nvimagecodec": Decoder(("nvidia.nvimgcodec",), _nvimagecodec, proven=False),
    "imagecodecs": Decoder(("imagecodecs",), _imagecodecs),
    "dicomsdl": Decoder(("dicomsdl",), _dicomsdl),
    "pylibjpeg": Decoder(("openjpeg", "libjpeg", "rle"), _pylibjpeg),
    "pillow": Decoder(("PIL",), _pillow),
    "gdcm": Decoder(("gdcm",), _gdcm),
}

ORDER = {  # transfer syntax -> decoders, fastest first
    **dict.fromkeys(JPEG_2000, ("nvimagecodec", "imagecodecs", "dicomsdl", "pylibjpeg", "pillow", "gdcm")),
    **dict.fromkeys(HIGH_THROUGHPUT, ("imagecodecs", "pylibjpeg")),
    **dict.fromkeys(LOSSLESS_JPEG, ("imagecodecs", "dicomsdl", "pylibjpeg", "gdcm")),
    **dict.fromkeys(JPEG_LS, ("imagecodecs", "dicomsdl", "gdcm")),
    JPEGBaseline8Bit: ("imagecodecs", "pillow", "pylibjpeg", "gdcm"),
    JPEGExtended12Bit: ("pylibjpeg", "imagecodecs"),  # the slower one first: it rounds as pydicom does
    RLELossless: ("imagecodecs", "pylibjpeg")}
# half or quarter size; imagecodecs can do it for HTJ2K, but its values wrap around where the wavelet goes below 0
REDUCED = dict.fromkeys(JPEG_2000 + HIGH_THROUGHPUT, ("pillow",))

@cache
def installed(
    name: str,  # a key of DECODERS
) -> bool:
    "Whether a decoder can be used here."
    try:
        if not all(map(find_spec, DECODERS[name].packages)):
            return False
        if name == "nvimagecodec":
            _gpu()
    except Exception:
        return False  # half installed, or no GPU: the same as absent
    return True

def decoders_for(
    syntax: UID,        # transfer syntax
    halvings: int = 0,  # 0: full size, 1: half, 2: a quarter
) -> tuple[str, ...]:   # names, fastest first; () when there is none
    "The installed decoders of a compression."
    return tuple(name for name in (REDUCED if halvings else ORDER).get(syntax, ()) if installed(name))

# %%
pd.DataFrame([{"transfer syntax": s.name, "full size": ", ".join(decoders_for(s)),
               "half and quarter": ", ".join(decoders_for(s, 1))} for s in ORDER])

# %% [markdown]
# ## One call
# When the first decoder refuses a frame, the others are tried. But some libraries return a picture for any input, and a
# damaged frame must not become an image because the most tolerant of them accepted it. After a refusal, a picture
# counts only if two libraries agree on it.

# %%
#| export
class NoDecoder(Exception):
    "No installed library decodes this compression."
class Refused(ValueError):
    "No decoder returned a picture that can be trusted; the message names the reasons."

_checked = {}  # (decoder not proven, transfer syntax) -> whether it agreed with another in this process

def _agree(a: np.ndarray, b: np.ndarray, syntax: UID) -> bool:
    "Equal to the bit, or to one level where the compression itself rounds."
    if a.shape != b.shape:
        return False
    return np.array_equal(a, b) or syntax in LOSSY and np.abs(a.astype(np.int64) - b).max() <= 1

def _inspect(
    frame: bytes,
    header,
) -> Codestream | None:  # None for RLE
    "Compare a frame with its header before anything is allocated."
    if header.syntax == RLELossless:
        return None
    coded = read_codestream(frame)
    if coded is None or coded.marker not in MARKERS[header.syntax]:
        raise Refused("the frame does not start like one of its compression")
    if header.syntax == JPEGBaseline8Bit and coded.precision != 8:
        raise Refused(f"{coded.precision} bits in a compression of 8")
    size, expected = (coded.rows, coded.columns, coded.samples), (header.rows, header.columns, 1)
    if size != expected:
        raise Refused(f"rows, columns, samples are {size} in the frame and {expected} in the header")
    if not coded.complete and header.syntax not in JPEG_2000:
        raise Refused("the frame has no end marker")  # these decoders would fill the rest with zeros
    return coded

def most_halvings(
    frame: bytes,  # compressed
    header,        # anything with .syntax
) -> int:          # 0, 1 or 2
    "How often a decoder here can halve the frame while decoding it."
    if not decoders_for(header.syntax, 1):
        return 0
    coded = read_codestream(frame)
    # Without its end marker a frame is decoded in full, to find what is missing. Where frame and header disagree about
    # the sign, values jump in the middle of their range, and a mean of both sides of such a jump is no value.
    sound = coded and coded.complete and coded.signed == header.signed
    return min(2, coded.levels) if sound else 0

def _within(pixels: np.ndarray, header) -> np.ndarray:
    """Values of a smaller picture within BitsStored. The wavelet overshoots at edges, but not by half of the range;
    where many values lie beyond that, BitsStored itself is wrong."""
    half = 1 << header.bits_stored - 1
    low, top = (-half, half - 1) if header.signed else (0, 2 * half - 1)
    beyond = (pixels < low - half) | (pixels > top + half)
    if header.bits_stored >= 8 * pixels.itemsize or beyond.mean() > 0.01:
        return pixels
    return np.clip(pixels, low, top, out=pixels)

def decode(
    frame: bytes,       # one compressed frame
    header,             # anything with .syntax, .rows, .columns, .bits_allocated, .bits_stored, .high_bit and .signed
    halvings: int = 0,  # 1: half, 2: a quarter of the rows and columns, rounded up
) -> tuple[np.ndarray, str]:  # (rows, columns) stored values; the decoder
    "Decode one frame with the fastest decoder that can be trusted; raises NoDecoder, Refused."
    names = decoders_for(header.syntax, halvings)
    if not names:
        raise NoDecoder(f"no decoder for {header.syntax.name}")
    coded = _inspect(frame, header)
    shape = tuple(-(-side // 2**halvings) for side in (header.rows, header.columns))
    refusals, answers = [], []
    for name in names:
        agreed = None if DECODERS[name].proven else _checked.get((name, header.syntax))
        if agreed is False:
            continue
        try:
            pixels = stored_values(DECODERS[name].decode(frame, coded, header, halvings), header, coded)
            pixels = _within(pixels, header) if halvings else pixels
            if pixels.shape != shape:
                raise ValueError(f"{pixels.shape} pixels instead of {shape}")
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except ImportError:
            continue  # a library that does not load counts as absent; the frame may be sound
        except BaseException as e:  # kept for the message; a panic in a codec written in Rust is not an Exception
            refusals.append(f"{name}: {(str(e).strip().splitlines() or [type(e).__name__])[-1][:120]}")
            continue
        trusted = not refusals and (DECODERS[name].proven or agreed)
        for other, others in answers:
            if (same := _agree(pixels, others, header.syntax)) or trusted:
                _checked[other, header.syntax] = same
            if same:
                return others, other
        if trusted:
            return pixels, name
        answers.append((name, pixels))
    raise Refused("; ".join(refusals + [f"{name}: a picture that no other confirms" for name, _ in answers]))

# %% [markdown]
# All libraries return the same values to the last bit, for all compressions. The times are those of this machine and
# this small frame.

# %%
table = []
for syntax, frame in coded.items():
    for name in decoders_for(syntax):
        started = time.perf_counter()
        values = stored_values(DECODERS[name].decode(frame, read_codestream(frame), header(syntax), 0), header(syntax),
                               read_codestream(frame))
        milliseconds = round(1e3 * (time.perf_counter() - started), 1)
        table.append({"transfer syntax": syntax.keyword, "decoder": name, "milliseconds": milliseconds})
        assert np.array_equal(values, picture) and values.dtype == np.uint16, (syntax, name)
pd.DataFrame(table).pivot(index="decoder", columns="transfer syntax", values="milliseconds")

# %% [markdown]
# Half and quarter sizes are not made from the whole picture. JPEG 2000 stores the quarter first, then the details of
# the half, and so on; decoding stops at the size that is needed.

# %%
frame = coded[JPEG2000Lossless]
assert most_halvings(frame, header(JPEG2000Lossless)) == 2
assert most_halvings(coded[JPEGLosslessSV1], header(JPEGLosslessSV1)) == 0
fig, axes = plt.subplots(1, 3, figsize=(9, 4))
for halvings, ax in enumerate(axes):
    started = time.perf_counter()
    small, name = decode(frame, header(JPEG2000Lossless), halvings)
    ax.imshow(small, cmap="gray")
    ax.set_title(f"{small.shape} by {name}\n{1e3 * (time.perf_counter() - started):.0f} ms", fontsize=9)
    whole = picture[:rows // 4 * 4, :columns // 4 * 4].reshape(rows // 4, 4, columns // 4, 4).mean((1, 3))
    if halvings == 2:
        assert abs(small.astype(float) - whole).mean() < 10
fig.tight_layout()

# %% [markdown]
# The errors for a frame that is cut short, that has another size than the header, and for bytes that are no picture:

# %%
another_size = frame.replace(rows.to_bytes(4, "big"), (60_000).to_bytes(4, "big"), 1)
for bad in (frame[:len(frame) // 2], another_size, b"no picture"):
    try:
        decode(bad, header(JPEG2000Lossless))
    except Refused as e:
        print(str(e)[:150])
    else:
        raise AssertionError("decoded")

# %% [markdown]
# ---
# [← Codestreams](23_codestreams.py) · [Parsing →](25_parsing.py)
