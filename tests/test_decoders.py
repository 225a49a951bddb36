"""core/decoders: all libraries say the same, the next is asked when one refuses, and a picture is believed only with
reason."""
from types import SimpleNamespace

import imagecodecs
import numpy as np
import pytest
from conftest import SHARED
from pydicom.uid import (ExplicitVRLittleEndian, HTJ2KLossless, JPEG2000Lossless, JPEGLosslessSV1, JPEGLSLossless,
                         RLELossless)

from mammo_nb.core import decoders
from mammo_nb.core.codestreams import read_codestream, stored_values
from mammo_nb.core.decoders import DECODERS, Decoder, NoDecoder, Refused, decode, decoders_for, most_halvings
from mammo_nb.core.dicom import read_frame, read_image

ROWS, COLUMNS = 203, 161  # odd, so that halves are rounded


def smooth(bits):
    "A soft half disc that uses the whole range, with noise."
    y, x = np.mgrid[:ROWS, :COLUMNS] / ROWS
    top = 2**bits - 1
    return np.clip(
        np.sqrt(np.clip(1 - x**2 -
                        (2 * y - 1)**2, 0, 1)) * top + np.random.default_rng(bits).normal(0, top / 200, x.shape), 0,
        top).astype(np.uint8 if bits == 8 else np.uint16)


def header(syntax, bits, signed=False, allocated=None):
    return SimpleNamespace(syntax=syntax, rows=ROWS, columns=COLUMNS, bits_allocated=allocated
                           or (8 if bits == 8 else 16), bits_stored=bits, high_bit=bits - 1, signed=signed)


def rle(pixels):
    "RLE by pydicom's own encoder, which decodes with none of the registered libraries."
    from pydicom.pixels import get_encoder
    return bytes(
        get_encoder(RLELossless).encode(pixels, encoding_plugin="pydicom", rows=ROWS, columns=COLUMNS,
                                        samples_per_pixel=1, photometric_interpretation="MONOCHROME2",
                                        number_of_frames=1, bits_allocated=8 * pixels.itemsize,
                                        bits_stored=8 * pixels.itemsize, pixel_representation=0))

ENCODERS = {
    JPEG2000Lossless: lambda a, bits: imagecodecs.jpeg2k_encode(a, level=0, codecformat="j2k", reversible=True,
                                                                bitspersample=bits),
    JPEGLosslessSV1: lambda a, bits: imagecodecs.jpeg_encode(a, lossless=True, predictor=1, bitspersample=bits),
    JPEGLSLossless: lambda a, bits: imagecodecs.jpegls_encode(a),
    HTJ2KLossless: lambda a, bits: imagecodecs.htj2k_encode(a), RLELossless: lambda a, bits: rle(a)
}


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
@pytest.mark.parametrize("syntax", ENCODERS, ids=lambda u: u.keyword)
def test_all_installed_decoders_agree_to_the_bit(syntax, bits):
    pixels = smooth(bits)
    frame, about = ENCODERS[syntax](pixels, bits), header(syntax, bits)
    coded = None if syntax == RLELossless else read_codestream(frame)
    names = decoders_for(syntax)
    assert len(names) >= 2
    for name in names:
        values = stored_values(DECODERS[name].decode(frame, coded, about, 0), about, coded)
        assert values.dtype == pixels.dtype and np.array_equal(values, pixels), name
    assert decode(frame, about)[1] == names[0]


@pytest.mark.parametrize("name", decoders_for(JPEG2000Lossless))
def test_signed_jpeg2000_under_every_decoder(name):
    signed = (smooth(12).astype(np.int32) - 2048).astype(np.int16)
    proper = imagecodecs.jpeg2k_encode(signed, level=0, codecformat="j2k", reversible=True, bitspersample=12)
    # says unsigned
    careless = imagecodecs.jpeg2k_encode(
        signed.view(np.uint16) & 0xFFF, level=0, codecformat="j2k", reversible=True, bitspersample=12)
    about = header(JPEG2000Lossless, 12, signed=True)
    for frame in (proper, careless):
        coded = read_codestream(frame)
        assert np.array_equal(stored_values(DECODERS[name].decode(frame, coded, about, 0), about, coded), signed)


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the real files in ../shared/data")
@pytest.mark.parametrize("name", [
    "ct_by_syntax/JPEG2000LosslessOnly_1.2.840.10008.1.2.4.90", "ct_by_syntax/JPEGLSLossless_1.2.840.10008.1.2.4.80",
    "ct_by_syntax/JPEGProcess14SV1_1.2.840.10008.1.2.4.70", "ct_by_syntax/JPEGProcess14_1.2.840.10008.1.2.4.57",
    "ct_by_syntax/RLELossless_1.2.840.10008.1.2.5", "wg04/RG3_J2KR", "wg04/RG3_JPLL"])
def test_all_decoders_agree_on_real_files_and_across_syntaxes(name):
    reference = read_image(
        SHARED / "dicom" /
        ("wg04/RG3_J2KR.dcm" if "RG3" in name else "ct_by_syntax/LittleEndianExplicit_1.2.840.10008.1.2.1.dcm")).pixels
    frame = read_frame(SHARED / "dicom" / f"{name}.dcm")
    coded = None if frame.header.syntax == RLELossless else read_codestream(frame.data)
    for decoder in decoders_for(frame.header.syntax):
        assert np.array_equal(
            stored_values(DECODERS[decoder].decode(frame.data, coded, frame.header, 0), frame.header, coded),
            reference), decoder


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, HTJ2KLossless], ids=lambda u: u.keyword)
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_a_half_and_a_quarter_are_small_pictures_of_the_same_thing(syntax, bits):
    pixels = smooth(bits)
    frame, about = ENCODERS[syntax](pixels, bits), header(syntax, bits)
    assert most_halvings(frame, about) == 2
    for halvings, step in ((1, 2), (2, 4)):
        small, _ = decode(frame, about, halvings)
        assert small.shape == (-(-ROWS // step), -(-COLUMNS // step)) and small.dtype == pixels.dtype
        means = pixels[:ROWS // step * step, :COLUMNS // step * step].reshape(ROWS // step, step, COLUMNS // step,
                                                                              step).mean((1, 3))
        assert np.abs(small[:ROWS // step, :COLUMNS // step] - means).mean() < .02 * 2**bits
    signed = (pixels.astype(np.int32) - 2**(bits - 1)).astype(np.int16)
    if syntax == JPEG2000Lossless and bits == 12:
        frame = imagecodecs.jpeg2k_encode(signed, level=0, codecformat="j2k", reversible=True, bitspersample=12)
        assert np.abs(decode(frame, header(syntax, 12, signed=True), 2)[0].astype(int) + 2048 - small).max() <= 1


def test_no_smaller_picture_of_what_was_not_halved_or_has_no_end():
    pixels = smooth(12)
    flat = imagecodecs.jpeg2k_encode(pixels, level=0, codecformat="j2k", reversible=True, bitspersample=12,
                                     resolutions=1)
    whole = ENCODERS[JPEG2000Lossless](pixels, 12)
    assert most_halvings(flat, header(JPEG2000Lossless, 12)) == 0
    assert most_halvings(whole[:-2], header(JPEG2000Lossless, 12)) == 0


def fake(*answers):
    "A decoder that gives these answers in turn, the last for ever; an exception is raised."
    left = list(answers)
    def decoder(frame, coded, header, halvings):
        answer = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(answer, BaseException):
            raise answer
        return answer.copy()
    return decoder


@pytest.fixture
def registry(monkeypatch):
    """Replace the decoders of JPEG 2000: `registry(first=..., second=...)`, in that order, all trusted unless named in
    `unproven`."""
    def replace(unproven=(), **named):
        table = {name: Decoder(("json",), f, proven=name not in unproven) for name, f in named.items()}
        monkeypatch.setattr(decoders, "DECODERS", table)
        monkeypatch.setattr(decoders, "ORDER", {JPEG2000Lossless: tuple(table)})
        monkeypatch.setattr(decoders, "_checked", {})
        decoders.installed.cache_clear()
    yield replace
    monkeypatch.undo()
    decoders.installed.cache_clear()


class Panic(BaseException):
    "What a codec written in Rust raises."


def test_after_a_refusal_two_must_agree(registry):
    pixels = smooth(12)
    frame, about, other = ENCODERS[JPEG2000Lossless](pixels, 12), header(JPEG2000Lossless, 12), smooth(12) ^ 1
    registry(a=fake(ValueError("a is strict")), b=fake(pixels), c=fake(pixels))
    values, name = decode(frame, about)
    assert name == "b" and np.array_equal(values, pixels)
    registry(a=fake(Panic("a is strict")), b=fake(other), c=fake(pixels), d=fake(other))
    assert decode(frame, about)[1] == "b"
    # alone, contradicted, of another size
    for rest in (dict(b=fake(pixels)), dict(b=fake(pixels), c=fake(other)), dict(b=fake(pixels[:-1]), c=fake(pixels))):
        registry(a=fake(ValueError("a is strict")), **rest)
        with pytest.raises(Refused, match="a is strict.*no other confirms"):
            decode(frame, about)
    registry(a=fake(ImportError("libGL.so.1")), b=fake(pixels))  # no opinion of the frame
    assert decode(frame, about)[1] == "b"
    registry(a=fake(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        decode(frame, about)


def test_an_unproven_decoder_is_checked_once_and_then_believed_or_left_out(registry):
    pixels = smooth(12)
    frame, about = ENCODERS[JPEG2000Lossless](pixels, 12), header(JPEG2000Lossless, 12)
    registry(gpu=fake(pixels), cpu=fake(pixels, ValueError("not asked again")), unproven=["gpu"])
    assert [decode(frame, about)[1] for _ in range(3)] == ["gpu"] * 3
    registry(gpu=fake(pixels ^ 1, ValueError("not asked again")), cpu=fake(pixels), unproven=["gpu"])
    for _ in range(3):
        values, name = decode(frame, about)
        assert name == "cpu" and np.array_equal(values, pixels)


def test_what_is_not_installed_is_passed_over(monkeypatch):
    pixels = smooth(12)
    frame, about = ENCODERS[JPEG2000Lossless](pixels, 12), header(JPEG2000Lossless, 12)
    order = decoders_for(JPEG2000Lossless)
    for gone in range(1, len(order)):
        monkeypatch.setattr(decoders, "installed", lambda name, gone=gone: name in order[gone:])
        values, name = decode(frame, about)
        assert name == order[gone] and np.array_equal(values, pixels)
    monkeypatch.setattr(decoders, "installed", lambda name: False)
    with pytest.raises(NoDecoder, match="JPEG 2000"):
        decode(frame, about)


def test_a_crash_in_gdcm_is_a_refusal(monkeypatch):
    frame, about = ENCODERS[JPEGLosslessSV1](smooth(12), 12), header(JPEGLosslessSV1, 12)
    monkeypatch.setattr(decoders.sys, "executable", "/bin/false")
    with pytest.raises(ValueError, match="its process ended with 1"):
        DECODERS["gdcm"].decode(frame, read_codestream(frame), about, 0)


def test_codestreams_say_size_precision_sign_and_end():
    jp2 = imagecodecs.jpeg2k_encode(smooth(12), level=0, codecformat="jp2", reversible=True, bitspersample=12)
    signed = imagecodecs.jpeg2k_encode(
        smooth(12).astype(np.int16) - 2048, level=0, codecformat="j2k", reversible=True, bitspersample=13)
    assert (read_codestream(jp2).rows, read_codestream(jp2).columns, read_codestream(jp2).precision,
            read_codestream(jp2).signed) == (ROWS, COLUMNS, 12, False)
    assert (read_codestream(signed).precision, read_codestream(signed).signed) == (13, True)
    sv1 = ENCODERS[JPEGLosslessSV1](smooth(10), 10)
    assert (read_codestream(sv1).marker, read_codestream(sv1).precision, read_codestream(sv1).complete) == (0xC3, 10,
                                                                                                            True)
    assert not read_codestream(sv1[:-2]).complete and read_codestream(sv1 + b"\0").complete
    assert read_codestream(b"") is None and read_codestream(
        bytes(100)) is None and read_codestream(b"\xff\xd8\xff") is None


@pytest.mark.parametrize("claimed", [JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless, HTJ2KLossless, RLELossless],
                         ids=lambda u: u.keyword)
def test_frames_of_another_compression_are_refused_or_read_right(claimed):
    pixels = smooth(12)
    for real, encode in ENCODERS.items():
        if real == claimed:
            continue
        try:
            values, _ = decode(encode(pixels, 12), header(claimed, 12))
        except Refused:
            continue
        assert np.array_equal(values, pixels), (real, claimed)  # OpenJPEG reads both kinds of JPEG 2000


def test_bits_that_contradict_themselves():
    values = np.array([[0, 1023, 1024, 4095]], np.uint16)
    about = lambda stored, high, signed=False: SimpleNamespace(syntax=ExplicitVRLittleEndian, bits_allocated=16,
                                                               bits_stored=stored, high_bit=high, signed=signed)
    # what lies above is no part of the value
    assert stored_values(values, about(10, 9)).tolist() == [[0, 1023, 0, 1023]]
    with pytest.raises(ValueError, match="BitsStored 10 and HighBit 11"):
        stored_values(values, about(10, 11))
    assert stored_values(values[:, :2], about(10, 11)).tolist() == [[0, 1023]]  # it does not matter here
    assert stored_values(values, about(12, 11, signed=True)).tolist() == [[0, 1023, 1024, -1]]
    with pytest.raises(ValueError, match="do not fit"):
        stored_values(
            values,
            SimpleNamespace(syntax=ExplicitVRLittleEndian, bits_allocated=8, bits_stored=12, high_bit=11, signed=False))
