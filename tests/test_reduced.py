"""Half and quarter sizes of JPEG 2000 are the bands of the wavelet, worked out here by its formula, and the means of
areas within what it does."""
import io
from pathlib import Path
from types import SimpleNamespace

import imagecodecs
import numpy as np
import pytest
from PIL import Image
from pydicom.pixels import get_encoder
from pydicom.uid import HTJ2KLossless, JPEG2000Lossless, JPEGLosslessSV1, JPEGLSLossless, RLELossless

from mammo_nb.core.codestreams import read_codestream, value_notes
from mammo_nb.core.decoders import Refused, decode, most_halvings
from mammo_nb.core.dicom import Frame
from mammo_nb.core.headers import Header

SIZES = [(203, 161), (64, 64), (97, 128), (139, 141)]


def low_band(x, start):
    """Low band of the reversible 5/3 filter along the first axis, ISO 15444-1 F.3.8.2.1.1, extended by reflection.
    `start` is the place of the first sample on the grid: the band has the samples at even places."""
    n = len(x)
    if n == 1:
        return x[start % 2:]

    def at(i):
        i = np.abs(i - start)
        return np.where(i > n - 1, 2 * (n - 1) - i, i)

    def detail(k):
        place = 2 * k + 1
        return x[at(place)] - (x[at(place - 1)] + x[at(place + 1)]) // 2

    k = np.arange(-(-start // 2), -(-(start + n) // 2))
    return x[at(2 * k)] + (detail(k - 1) + detail(k) + 2) // 4


def reduced(x, halvings, limits, tile=None, start=(0, 0)):
    "The picture that a decoder must give. Each tile has a wavelet of its own."
    if tile:
        rows, columns = (range(0, side, step) for side, step in zip(x.shape, tile))
        return np.block([[reduced(x[i:i + tile[0], j:j + tile[1]], halvings, limits, start=(i, j)) for j in columns]
                         for i in rows])
    x = x.astype(np.int64)
    for _ in range(halvings):
        x = low_band(low_band(x, start[0]).T, start[1]).T
        start = [-(-place // 2) for place in start]
    return np.clip(x, *limits)


def picture(shape, bits, signed):
    "A soft half disc with noise, black bars and a white marker, over the whole range; the wavelet overshoots."
    y, x = np.mgrid[:shape[0], :shape[1]] / shape[0]
    top = 2**bits - 1
    disc = np.sqrt(np.clip(1 - x**2 - (2 * y - 1)**2, 0, 1)) * top * 1.2
    v = np.clip(disc + np.random.default_rng(bits).normal(0, top / 50, x.shape), 0, top).astype(np.int64)
    v[:, shape[1] // 2:][:, ::7] = 0
    v[5:9, 5:30] = top
    if signed:
        return (v - 2**(bits - 1)).astype(np.int8 if bits == 8 else np.int16)
    return v.astype(np.uint8 if bits == 8 else np.uint16)


def header(syntax, x, bits):
    return SimpleNamespace(syntax=syntax, rows=x.shape[0], columns=x.shape[1], bits_allocated=8 * x.itemsize,
                           bits_stored=bits, high_bit=bits - 1, signed=x.dtype.kind == "i")


def j2k(x, bits, **how):
    return imagecodecs.jpeg2k_encode(x, level=0, reversible=True, bitspersample=bits, **{"codecformat": "j2k"} | how)


def spliced(x, bits):
    """Tiles of 64 x 64 under one header (ISO 15444-1 A.4.2, A.5.1): each tile is coded alone, so the parts of streams
    with one tile each are put together. Wavelet and code blocks of these tiles are the same at any multiple of 64."""
    head, parts = None, []
    for i in range(0, x.shape[0], 64):
        for j in range(0, x.shape[1], 64):
            frame = j2k(np.ascontiguousarray(x[i:i + 64, j:j + 64]), bits, resolutions=3)
            begin = frame.find(b"\xff\x90\0\x0a")   # SOT
            head = head or bytearray(frame[:begin])
            parts.append(frame[begin:begin + 4] + len(parts).to_bytes(2, "big") + frame[begin + 6:-2])
    siz = head.find(b"\xff\x51")
    for place, value in enumerate((*x.shape[::-1], 0, 0, 64, 64)):  # Xsiz, Ysiz, XOsiz, YOsiz, XTsiz, YTsiz
        head[siz + 6 + 4 * place:siz + 10 + 4 * place] = value.to_bytes(4, "big")
    return bytes(head) + b"".join(parts) + b"\xff\xd9"


def by_pillow(x, bits, tile):
    """Tiles of any size. Pillow codes 8 or 16 bits without a sign, so values are lifted to have the coefficients that
    they have in `bits`; precision and sign are then set in SIZ. In 16 bits it mixes up tiles side by side."""
    whole, signed, file = 8 * x.itemsize, x.dtype.kind == "i", io.BytesIO()
    lifted = x.astype(np.int64) + 2**(whole - 1) - (0 if signed else 2**(bits - 1))
    Image.fromarray(lifted.astype(f"u{x.itemsize}")).save(file, "JPEG2000", tile_size=tile[::-1], irreversible=False,
                                                           no_jp2=True)
    frame = bytearray(file.getvalue())
    frame[frame.find(b"\xff\x51") + 40] = bits - 1 | signed << 7
    return bytes(frame)


def rle(x):
    "RLE of 16 bits by pydicom's encoder."
    rows, columns = x.shape
    return bytes(get_encoder(RLELossless).encode(
        x, encoding_plugin="pydicom", rows=rows, columns=columns, samples_per_pixel=1, number_of_frames=1,
        photometric_interpretation="MONOCHROME2", bits_allocated=16, bits_stored=16, pixel_representation=0))


STREAMS = {  # syntax, encoder, rows and columns of a tile
    "codestream": (JPEG2000Lossless, j2k, None),
    "JP2 boxes": (JPEG2000Lossless, lambda x, bits: j2k(x, bits, codecformat="jp2"), None),
    "high throughput": (HTJ2KLossless, lambda x, bits: imagecodecs.htj2k_encode(x), None),
    "high throughput, tiles": (HTJ2KLossless, lambda x, bits: imagecodecs.htj2k_encode(x, tile=(64, 64)), (64, 64)),
    "tiles": (JPEG2000Lossless, spliced, (64, 64)),
    "tiles of odd height": (JPEG2000Lossless, lambda x, bits: by_pillow(x, bits, (45, 200)), (45, 200)),
}


def check_band(x, bits, syntax, frame, tile):
    "Full decode, and half and quarter against the formula and against the means of areas."
    signed = x.dtype.kind == "i"
    limits = (-2**(bits - 1), 2**(bits - 1) - 1) if signed else (0, 2**bits - 1)
    about = header(syntax, x, bits)
    assert np.array_equal(decode(frame, about)[0], x) and most_halvings(frame, about) == 2
    for halvings, step in ((1, 2), (2, 4)):
        small, _ = decode(frame, about, halvings)
        assert small.dtype == x.dtype and np.array_equal(small, reduced(x, halvings, limits, tile)), x.shape
        rows, columns = (side // step for side in x.shape)
        whole = x[:rows * step, :columns * step].astype(float)
        means = whole.reshape(rows, step, columns, step).mean((1, 3))
        assert abs((small[:rows, :columns] - means).mean()) < 0.02 * 2**bits  # no offset, no wrap


@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize("bits", range(8, 17))
@pytest.mark.parametrize("stream", STREAMS)
def test_a_smaller_picture_is_the_band_of_the_wavelet(stream, bits, signed):
    syntax, encode, tile = STREAMS[stream]
    # the encoder halves a small tile less often, and then its parts do not fit under one header
    for shape in SIZES if stream != "tiles" else [(97, 161), (64, 128), (192, 96)]:
        x = picture(shape, bits, signed)
        check_band(x, bits, syntax, encode(x, bits), tile)


@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize("tile", [(45, 61), (64, 33), (37, 50)], ids=str)
def test_tiles_that_begin_at_odd_places(tile, signed):
    for shape in [(203, 161), (97, 128), (131, 130)]:
        x = picture(shape, 8, signed)
        frame = by_pillow(x, 8, tile)
        assert frame.count(b"\xff\x90\0\x0a") == -(-shape[0] // tile[0]) * -(-shape[1] // tile[1])
        check_band(x, 8, JPEG2000Lossless, frame, tile)


def test_where_a_tile_vanishes_in_a_quarter_the_whole_is_decoded():
    "The columns 61 to 63 hold none of the columns 0, 4, 8, ... that a quarter keeps; Pillow refuses such a stream."
    x = picture((64, 64), 8, False)
    frame, about = by_pillow(x, 8, (45, 61)), header(JPEG2000Lossless, x, 8)
    with pytest.raises(Refused):
        decode(frame, about, 2)
    fields = dict(path=Path("a.dcm"), syntax_name="", frames=1, samples=1, photometric="MONOCHROME2", image_id="1")
    image = Frame(Header(**vars(about) | fields), 0, frame).decode(0.25)
    assert image.scale == 1 and np.array_equal(image.pixels, x)


@pytest.mark.parametrize("claimed", [False, True], ids=["header unsigned", "header signed"])
def test_where_stream_and_header_disagree_about_the_sign_the_whole_is_decoded(claimed):
    x = picture((203, 161), 12, not claimed)
    about = header(JPEG2000Lossless, x, 12)
    about.signed = claimed
    frame = j2k(x, 12)
    assert most_halvings(frame, header(JPEG2000Lossless, x, 12)) == 2 and most_halvings(frame, about) == 0


def test_a_grid_that_begins_elsewhere_is_decoded_whole():
    frame = bytearray(j2k(picture((203, 161), 12, False), 12))
    start = frame.find(b"\xff\x51")
    assert read_codestream(bytes(frame)).levels >= 2
    for place, value in ((6, 162), (14, 1)):  # Xsiz and XOsiz of SIZ
        frame[start + place:start + place + 4] = value.to_bytes(4, "big")
    assert read_codestream(bytes(frame)).columns == 161 and read_codestream(bytes(frame)).levels == 0


# ---- sign and bits of codecs that know no sign
@pytest.mark.parametrize("precision", [12, 16])
def test_the_sign_bit_is_extended_for_every_codec(precision):
    x = picture((64, 50), 12, True)
    masked = x.view(np.uint16) & 0xFFF  # as a machine that clears the unused bits hands it over
    frames = {
        JPEGLSLossless: imagecodecs.jpegls_encode(masked),
        JPEGLosslessSV1: imagecodecs.jpeg_encode(masked, lossless=True, predictor=1, bitspersample=precision),
        JPEG2000Lossless: j2k(masked, precision),
        RLELossless: rle(masked),
    }
    for syntax, frame in frames.items():
        assert np.array_equal(decode(frame, header(syntax, x, 12))[0], x), syntax.name


@pytest.mark.parametrize("bits", [12, 16])
def test_negative_values_under_an_unsigned_header_are_told(bits):
    y, x = np.mgrid[:64, :64]
    truth = (x * 40 - y * 20 - 700 + np.random.default_rng(0).integers(0, 30, x.shape)).astype(np.int16)
    wrapped = truth.view(np.uint16) & ((1 << bits) - 1)
    about = header(RLELossless, wrapped, bits)
    about.signed = False
    pixels, _ = decode(rle(wrapped), about)
    assert np.array_equal(pixels, wrapped) and "look signed" in value_notes(pixels, about)[0]
    marked = np.where(x > 8, truth - truth.min(), 0).astype(np.uint16)   # air, a breast and a white mark
    marked[20:30, 2:7] = (1 << bits) - 1
    assert value_notes(marked, about) == ()


@pytest.mark.parametrize("signed", [False, True], ids=["ten bits named", "a sign named"])
def test_values_count_where_the_header_names_too_few_bits_or_a_sign(signed):
    y, x = np.mgrid[:64, :64]
    x = (x * 40 + y * 20 + np.random.default_rng(0).integers(0, 30, x.shape)).astype(np.uint16)  # 0 to 3809
    about = header(RLELossless, x, 12 if signed else 10)
    about.signed = signed
    pixels, _ = decode(rle(x), about)
    assert np.array_equal(pixels, x) and len(value_notes(pixels, about)) == 1
    about.signed, about.bits_stored, about.high_bit = False, 12, 11
    assert value_notes(pixels, about) == ()
