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
# # Codestreams
# > The size and precision in the first bytes of a compressed frame, and the stored values of a decoded one.
#
# A frame is described twice, by its own first bytes and by the DICOM header, and damaged or careless files contradict
# themselves. This notebook reads the first description and settles sign and precision, whatever library decodes.

# %%
#| default_exp core.codestreams

# %%
#| export
from dataclasses import dataclass

import numpy as np
from pydicom.uid import (HTJ2K, HTJ2KLossless, HTJ2KLosslessRPCL, JPEG2000, JPEG2000Lossless, JPEGBaseline8Bit,
                         JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1, JPEGLSLossless, JPEGLSNearLossless)

# %%
#| hide
from types import SimpleNamespace

import imagecodecs
from pydicom.uid import RLELossless

# %% [markdown]
# ## The first bytes of a frame
# A compressed frame carries its size a second time, and a codec uses this one: with a damaged byte there it would
# allocate gigabytes. The first bytes are read here, so that they can be compared with the header before any codec runs.
# The same bytes give the precision, the sign, and how often a JPEG 2000 picture was halved when it was coded.

# %%
#| export
JPEG_2000 = JPEG2000Lossless, JPEG2000
HIGH_THROUGHPUT = HTJ2KLossless, HTJ2KLosslessRPCL, HTJ2K
JPEG_LS = JPEGLSLossless, JPEGLSNearLossless
LOSSLESS_JPEG = JPEGLossless, JPEGLosslessSV1
MARKERS = {  # transfer syntax -> markers that its frames may begin with
    **dict.fromkeys(JPEG_2000 + HIGH_THROUGHPUT, (0x51,)),
    **dict.fromkeys(JPEG_LS, (0xF7,)),
    **dict.fromkeys(LOSSLESS_JPEG, (0xC3,)),
    JPEGBaseline8Bit: (0xC0,),
    JPEGExtended12Bit: (0xC0, 0xC1),
}
# may be lossy: decoders then differ by one level
LOSSY = (JPEG2000, HTJ2K, JPEGLSNearLossless, JPEGBaseline8Bit, JPEGExtended12Bit)

@dataclass(frozen=True)
class Codestream:
    "Size, precision and coding of a compressed frame."
    rows: int        # pixels
    columns: int     # pixels
    samples: int     # per pixel
    precision: int   # bits
    signed: bool     # JPEG 2000 only
    levels: int      # how often JPEG 2000 halved the picture
    marker: int      # of the segment this was read from: 0x51 JPEG 2000, 0xF7 JPEG-LS, 0xC3 lossless JPEG, ...
    complete: bool   # the end marker is there

def read_codestream(
    frame: bytes,  # one compressed frame
) -> Codestream | None:  # None when it starts like neither JPEG 2000 nor JPEG nor JPEG-LS
    "Markers SIZ and COD of JPEG 2000 (ISO 15444-1 A.5.1, A.6.1), SOF of JPEG and JPEG-LS (ISO 10918-1 B.2.2)."
    number = lambda start, length: int.from_bytes(frame[start:start + length], "big")
    complete = frame.rfind(b"\xff\xd9", max(0, len(frame) - 64)) >= 0  # padding may follow
    boxed = frame.startswith(b"\0\0\0\x0cjP  ")  # a JP2 wrapper, not allowed but seen
    if (start := frame.find(b"\xff\x4f\xff\x51", 0, 65536 if boxed else 4)) >= 0:
        width, height, left, top = (number(start + 8 + 4 * i, 4) for i in range(4))
        levels = 0
        at = start + 4 + number(start + 4, 2)
        while at + 10 < len(frame) and frame[at] == 0xFF and frame[at + 1] != 0x90:  # up to the first tile
            if frame[at + 1] == 0x52:
                levels = frame[at + 9]
            at += 2 + number(at + 2, 2)
        return Codestream(height - top, width - left, number(start + 40, 2), (frame[start + 42] & 0x7F) + 1,
                          frame[start + 42] > 0x7F, levels, 0x51, complete)
    at = 2 if frame[:2] == b"\xff\xd8" else len(frame)
    while at + 9 < len(frame) and frame[at] == 0xFF:
        marker = frame[at + 1]
        if marker == 0xF7 or 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # a start of frame
            return Codestream(number(at + 5, 2), number(at + 7, 2), frame[at + 9], frame[at + 4], False, 0, marker,
                              complete)
        at += 1 if marker == 0xFF else 2 + number(at + 2, 2)
    return None

# %%
picture = np.add.outer(np.arange(96) * 8, np.arange(64) * 16).astype(np.uint16)
frame = imagecodecs.jpeg2k_encode(picture, level=0, codecformat="j2k", reversible=True, bitspersample=12)
about = read_codestream(frame)
assert (about.rows, about.columns, about.precision, about.complete) == (96, 64, 12, True)
assert not read_codestream(frame[:-2]).complete and read_codestream(b"no picture") is None
about

# %% [markdown]
# ## Stored values
# Libraries return different containers and signs. The header decides both: the lowest bits are taken, in two's
# complement when the header is signed. A JPEG 2000 or JPEG-LS frame has a precision of its own, and some machines write
# a signed header over unsigned data. For the others, the bits above `BitsStored` are no part of the value (PS3.5
# section 8.1.1). `HighBit` repeats `BitsStored`. Where the two contradict each other and the pixels depend on it, the
# frame is refused, because one reading would lose its brightest part.

# %%
#| export
def _low_bits(values: np.ndarray, bits: int, dtype: np.dtype) -> np.ndarray:
    "The lowest bits of each value, in two's complement where the dtype is signed; a copy."
    pixels = np.array(values, dtype, order="C")
    spare = 8 * dtype.itemsize - bits
    np.left_shift(pixels, spare, out=pixels)
    return np.right_shift(pixels, spare, out=pixels)  # arithmetic where signed

def stored_values(
    values: np.ndarray,         # as a decoder returns them, or as the file holds them
    header,                     # anything with .syntax, .bits_allocated, .bits_stored, .high_bit and .signed
    coded: Codestream | None = None,  # None: not compressed, or RLE
) -> np.ndarray:                # same shape, contiguous, writeable, native byte order: uint8, int16, uint16, ...
    "The numbers in the container and with the sign of the header; raises ValueError where they contradict it."
    dtype = np.dtype(f"{'i' if header.signed else 'u'}{max(1, header.bits_allocated // 8)}")
    own = coded is not None and header.syntax in JPEG_2000 + HIGH_THROUGHPUT + JPEG_LS
    bits = coded.precision if own else header.bits_stored
    if bits > 8 * dtype.itemsize:
        raise ValueError(f"{bits} bits a pixel do not fit into {header.bits_allocated} allocated")
    unsigned = coded is not None and not header.signed and not coded.signed and coded.precision <= bits
    settled = unsigned or (own and header.signed and coded.signed)
    if settled or bits == 8 * dtype.itemsize:
        return np.require(values.astype(dtype, copy=False), requirements="CW")
    pixels = _low_bits(values, bits, dtype)
    contradicts = not own and header.high_bit != bits - 1
    if contradicts and not np.array_equal(pixels, _low_bits(values, header.high_bit + 1, dtype)):
        raise ValueError(
            f"BitsStored {bits} and HighBit {header.high_bit} contradict each other, and the pixels use the difference")
    return pixels

# %%
as_stored = SimpleNamespace(syntax=RLELossless, bits_allocated=16, bits_stored=12, high_bit=11, signed=True)
assert stored_values(np.array([0xF7FF, 0x0800, 0x0FFF], np.uint16), as_stored).tolist() == [2047, -2048, -1]

# %% [markdown]
# ---
# [← Raster](22_raster.py) · [Decoders →](24_decoders.py)
