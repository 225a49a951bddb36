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
LOSSY_JPEG = JPEGBaseline8Bit, JPEGExtended12Bit
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
    levels: int      # how often JPEG 2000 halved the picture; 0 if its grid does not begin with the picture
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
        levels, shifted = 0, left or top or number(start + 32, 4) or number(start + 36, 4)
        at = start + 4 + number(start + 4, 2)
        while at + 10 < len(frame) and frame[at] == 0xFF and frame[at + 1] != 0x90:  # up to the first tile
            if frame[at + 1] == 0x52 and not shifted:
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
# a signed header over unsigned data. Only JPEG 2000 knows a sign, so the sign bit of the other compressions is extended
# here. For the others, the bits above `BitsStored` are no part of the value (PS3.5 section 8.1.1). `HighBit` repeats
# `BitsStored`.
#
# Some headers name too few bits, or a sign that the values do not have. Their pictures then jump from white to black
# and back. So where the other reading differs, the smoother of the two pictures is taken. An overlay in the upper bits
# makes a picture rougher, and stays outside. Where BitsStored and HighBit contradict each other and no reading is
# clearly the smoother one, the frame is refused, because one of them would lose its brightest part.

# %%
#| export
SMOOTHER = 0.8  # another reading counts if its neighbours differ by less than this share of the usual reading's
MUCH_SMOOTHER = 0.6  # the same for a sign, which damaged pixels may contradict, too

def _low_bits(values: np.ndarray, bits: int, dtype: np.dtype) -> np.ndarray:
    "The lowest bits of each value, in two's complement where the dtype is signed; a copy."
    pixels = np.array(values, dtype, order="C")
    spare = 8 * dtype.itemsize - bits
    np.left_shift(pixels, spare, out=pixels)
    return np.right_shift(pixels, spare, out=pixels)  # arithmetic where signed

def _steps(rows: np.ndarray) -> float:
    if rows.shape[-1] < 2:
        return 0.0
    wide = np.int32 if rows.itemsize < 4 else np.int64  # a difference needs one bit more than its values
    return float(np.abs(np.subtract(rows[..., 1:], rows[..., :-1], dtype=wide)).mean())

def roughness(
    pixels: np.ndarray,  # (rows, columns)
) -> float:
    "Mean absolute difference of neighbours in a row, in every eighth row."
    return _steps(pixels[::8])

def _smoother(usual: np.ndarray, other: np.ndarray, share: float = SMOOTHER) -> np.ndarray:
    "The other reading if it is clearly the smoother one, else the usual one."
    return other if roughness(other) < share * roughness(usual) else usual

def _bits_of(header, coded: Codestream | None) -> int:
    "How many of the lowest bits of a value count."
    if coded is None or header.syntax in LOSSLESS_JPEG + LOSSY_JPEG and not header.signed:
        return header.bits_stored
    return coded.precision

AT_LOW_END = 0.02  # share of the lowest value that makes it a background, and no value in the middle of a range

def _signed(pixels: np.ndarray, bits: int, stored: int) -> np.ndarray:
    "The place of a sign bit that the codec does not know: at BitsStored, where no value uses the bits above."
    if not stored < bits or pixels.min() < 0 or int(pixels.max(initial=0)) >> stored - 1 != 1:
        return pixels
    extended = _low_bits(pixels, stored, pixels.dtype)
    return extended if (extended == extended.min()).mean() > AT_LOW_END else _smoother(pixels, extended)

def _unwrapped(pixels: np.ndarray, bits: int) -> np.ndarray:
    "Values under a signed header that are unsigned in truth: they cross the middle of the range."
    low = int(pixels.min())
    if bits < 3 or low >= -(1 << bits - 2) or pixels.max() < 1 << bits - 2:
        return pixels
    if (pixels == low).mean() > AT_LOW_END:
        return pixels
    unsigned = pixels.view(f"u{pixels.itemsize}")
    if bits == 8 * pixels.itemsize:
        return _smoother(pixels, unsigned, MUCH_SMOOTHER)
    within = (unsigned & unsigned.dtype.type((1 << bits) - 1)).view(pixels.dtype)
    return _smoother(pixels, within, MUCH_SMOOTHER)

def stored_values(
    values: np.ndarray,         # as a decoder returns them, or as the file holds them
    header,                     # anything with .syntax, .bits_allocated, .bits_stored, .high_bit and .signed
    coded: Codestream | None = None,  # None: not compressed, or RLE
) -> np.ndarray:                # same shape, contiguous, writeable, native byte order: uint8, int16, uint16, ...
    """The numbers in the container of the header, with its sign unless they contradict it; raises ValueError where
    they do not fit."""
    dtype = np.dtype(f"{'i' if header.signed else 'u'}{max(1, header.bits_allocated // 8)}")
    whole, bits = 8 * dtype.itemsize, _bits_of(header, coded)
    if bits > whole:
        raise ValueError(f"{bits} bits a pixel do not fit into {header.bits_allocated} allocated")
    own = coded is not None and header.syntax in JPEG_2000 + HIGH_THROUGHPUT + JPEG_LS
    known = coded is not None and header.signed == coded.signed and coded.precision <= bits
    if known or bits == whole and not header.signed:
        return np.require(values.astype(dtype, copy=False), requirements="CW")
    pixels = _low_bits(values, bits, dtype)
    if header.signed:
        pixels = _signed(pixels, bits, header.bits_stored)
        fits = -int(pixels.min()) <= 1 << header.bits_stored - 1 > int(pixels.max())
        pixels = _unwrapped(pixels, min(bits, header.bits_stored) if fits else bits)
    elif coded is None and (used := int(values.max(initial=0)).bit_length()) > bits:
        pixels = _smoother(pixels, _low_bits(values, min(used, whole), dtype))
    contradicts = not own and header.high_bit != header.bits_stored - 1
    if contradicts and not (np.array_equal(pixels, _low_bits(values, header.high_bit + 1, dtype))
                            or int(pixels.max()) >> header.bits_stored):
        raise ValueError(
            f"BitsStored {header.bits_stored} and HighBit {header.high_bit} contradict each other, and the pixels use "
            "the difference")
    return pixels

def _looks_signed(pixels: np.ndarray, bits: int) -> bool:
    "Whether unsigned values jump where signed ones would cross zero; their lowest value is then no background."
    rows = pixels[::8]   # the whole frame would need another one of memory
    if not int(rows.max(initial=0)) >> bits - 1 or (rows == rows.min()).mean() > AT_LOW_END:
        return False     # nearly every mammogram ends here; what follows costs more
    return _steps(_low_bits(rows, bits, np.dtype(f"i{pixels.itemsize}"))) < MUCH_SMOOTHER * _steps(rows)

def value_notes(
    pixels: np.ndarray,  # from `stored_values`
    header,              # as for `stored_values`
) -> tuple[str, ...]:    # sentences for a table, empty if the header is right
    "What the values contradict in the header."
    top = int(pixels.max(initial=0))
    if header.signed and top >= 1 << header.bits_stored - 1:
        return ("the values are unsigned, the header is signed; read as unsigned",)
    if not header.signed and top >> header.bits_stored:
        return (f"values of {top.bit_length()} bits, BitsStored is {header.bits_stored}; read as they are",)
    if pixels.dtype.kind == "u" and _looks_signed(pixels, header.bits_stored):
        return ("the values look signed, the header is unsigned; read as unsigned, so the grey levels may be wrong",)
    return ()

# %%
as_stored = SimpleNamespace(syntax=RLELossless, bits_allocated=16, bits_stored=12, high_bit=11, signed=True)
assert stored_values(np.array([[0xF7FE, 0x0001, 0x0FFF]], np.uint16), as_stored).tolist() == [[2046, 1, -1]]

# %% [markdown]
# A ramp of 12 bits under three headers: one names ten bits, one a sign, one is right but has an overlay in its highest
# bit.

# %%
ramp = np.tile(np.arange(0, 4096, 4, dtype=np.uint16), (16, 1))
few = SimpleNamespace(**vars(as_stored) | {"bits_stored": 10, "high_bit": 9, "signed": False})
assert (stored_values(ramp, few) == ramp).all() and (stored_values(ramp, as_stored) == ramp).all()
unsigned = SimpleNamespace(**vars(as_stored) | {"signed": False})
overlaid = ramp | (np.arange(1024) % 50 < 25).astype(np.uint16) << 15
assert (stored_values(overlaid, unsigned) == ramp).all()
value_notes(ramp, few), value_notes(ramp.astype(np.int16), as_stored), value_notes(ramp, unsigned)

# %% [markdown]
# ---
# [← Pictures](22_pictures.py) · [Decoders →](24_decoders.py)
