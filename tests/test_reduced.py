"""Half and quarter sizes of JPEG 2000 are the bands of the wavelet, worked out here by its formula, and the means of
areas within what it does."""
from types import SimpleNamespace

import imagecodecs
import numpy as np
import pytest
from pydicom.pixels import get_encoder
from pydicom.uid import HTJ2KLossless, JPEG2000Lossless, JPEGLosslessSV1, JPEGLSLossless, RLELossless

from mammo_nb.core.codestreams import read_codestream, value_notes
from mammo_nb.core.decoders import decode, most_halvings

SIZES = [(203, 161), (64, 64), (97, 128), (131, 130)]


def low_band(x):
    "Low band of the reversible 5/3 filter along the first axis, ISO 15444-1 F.3.8.2.1.1, extended by reflection."
    n = len(x)
    if n == 1:
        return x

    def at(i):
        i = np.abs(i)
        return np.where(i > n - 1, 2 * (n - 1) - i, i)

    def detail(k):
        place = at(2 * k + 1)
        return x[place] - (x[at(place - 1)] + x[at(place + 1)]) // 2

    k = np.arange(-(-n // 2))
    return x[2 * k] + (detail(k - 1) + detail(k) + 2) // 4


def reduced(x, halvings, limits, tile=None):
    "The picture that a decoder must give."
    if tile:
        rows, columns = (range(0, side, tile) for side in x.shape)
        return np.block([[reduced(x[i:i + tile, j:j + tile], halvings, limits) for j in columns] for i in rows])
    x = x.astype(np.int64)
    for _ in range(halvings):
        x = low_band(low_band(x).T).T
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


def rle(x):
    "RLE of 16 bits by pydicom's encoder."
    rows, columns = x.shape
    return bytes(get_encoder(RLELossless).encode(
        x, encoding_plugin="pydicom", rows=rows, columns=columns, samples_per_pixel=1, number_of_frames=1,
        photometric_interpretation="MONOCHROME2", bits_allocated=16, bits_stored=16, pixel_representation=0))


STREAMS = {  # syntax, encoder, side of a tile
    "codestream": (JPEG2000Lossless, j2k, None),
    "JP2 boxes": (JPEG2000Lossless, lambda x, bits: j2k(x, bits, codecformat="jp2"), None),
    "high throughput": (HTJ2KLossless, lambda x, bits: imagecodecs.htj2k_encode(x), None),
    "tiles": (HTJ2KLossless, lambda x, bits: imagecodecs.htj2k_encode(x, tile=(64, 64)), 64),
}


@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize("bits", range(8, 17))
@pytest.mark.parametrize("stream", STREAMS)
def test_a_smaller_picture_is_the_band_of_the_wavelet(stream, bits, signed):
    syntax, encode, tile = STREAMS[stream]
    limits = (-2**(bits - 1), 2**(bits - 1) - 1) if signed else (0, 2**bits - 1)
    for shape in SIZES:
        x = picture(shape, bits, signed)
        frame, about = encode(x, bits), header(syntax, x, bits)
        assert np.array_equal(decode(frame, about)[0], x) and most_halvings(frame, about) == 2
        for halvings, step in ((1, 2), (2, 4)):
            small, _ = decode(frame, about, halvings)
            assert small.dtype == x.dtype and np.array_equal(small, reduced(x, halvings, limits, tile)), shape
            rows, columns = (side // step for side in shape)
            whole = x[:rows * step, :columns * step].astype(float)
            means = whole.reshape(rows, step, columns, step).mean((1, 3))
            assert abs((small[:rows, :columns] - means).mean()) < 0.02 * 2**bits  # no offset, no wrap


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
