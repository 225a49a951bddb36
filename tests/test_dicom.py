"core/dicom: stored values of every transfer syntax, the header, and one typed error for each kind of bad file."
import hashlib
import logging
import math
import pickle
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.tag import Tag
from pydicom.uid import (DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ExplicitVRLittleEndian, HTJ2K,
                         HTJ2KLossless, ImplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, JPEGLosslessSV1,
                         RLELossless)

from mammo_nb.core.headers import (BadHeader, CorruptPixels, DicomError, MissingTag, MultiFrame, NotDicom,
                                   UnsupportedSyntax, typed_errors)
from mammo_nb.mammo.reading.mammograms import read_header, read_image

DATA = Path(__file__).parents[2] / "shared" / "data"
needs_data = pytest.mark.skipif(not (DATA / "EXPECTED_pixels.txt").exists(),
                                reason="shared/data, the real files, is not here")

# what the files that hold no readable image must get
ERRORS = {
    "JPEGProcess10_12": UnsupportedSyntax, "JPEGProcess6_8": UnsupportedSyntax,
    "JPEG2000-embedded-sequence-delimiter": CorruptPixels, "MR_truncated": CorruptPixels, "badVR": BadHeader,
    "meta_missing_tsyntax": MissingTag, "no_meta.dcm": NotDicom, "no_meta_group_length": MissingTag
}

def expected_rows():
    if not (DATA / "EXPECTED_pixels.txt").exists():
        return []
    return [[field.strip() for field in line.split("|")]
            for line in (DATA / "EXPECTED_pixels.txt").read_text().splitlines()]

def dataset(pixels, **tags):
    "A minimal grey image."
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    size = 8 * pixels.dtype.itemsize
    base = dict(SOPClassUID="1.2.840.10008.5.1.4.1.1.1.2", SOPInstanceUID="1.2.3", Rows=pixels.shape[-2],
                Columns=pixels.shape[-1], SamplesPerPixel=1, PhotometricInterpretation="MONOCHROME2",
                BitsAllocated=size, BitsStored=size, HighBit=size - 1,
                PixelRepresentation=int(pixels.dtype.kind == "i"), PixelData=pixels.tobytes())
    for name, value in (base | tags).items():
        if value is not None:
            setattr(ds, name, value)
    if "PixelData" in ds:
        ds["PixelData"].VR = "OW" if size > 8 else "OB"
    return ds

def save(ds, path, syntax=None):
    if syntax is not None:
        ds.file_meta.TransferSyntaxUID = syntax
    ds.save_as(path, enforce_file_format=True)
    return path

def encapsulated(ds, path, frame, syntax):
    ds.PixelData = encapsulate([frame])
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = True
    return save(ds, path, syntax)

@pytest.fixture
def ramp():
    # odd width; half of it would be negative as int16
    return np.random.default_rng(1).integers(0, 2**16, (40, 33), np.uint16)


# --- pixels

@needs_data
def test_the_table_of_expected_pixels_is_complete():
    assert len(expected_rows()) == 34

@needs_data
@pytest.mark.parametrize("row", expected_rows(), ids=lambda row: Path(row[1]).name)
def test_expected_pixels(row):
    path, outcome = DATA / row[1], row[6]
    if not outcome.startswith("OK"):
        expected = next(error for name, error in ERRORS.items() if name in path.name)
        with pytest.raises(expected) as caught:
            read_image(path)
        assert type(caught.value) is expected and path.name in str(caught.value) and caught.value.remedy
        return
    shape, dtype, digest = outcome[3:].rsplit(" ", 2)
    frames = read_header(path).frames
    images = [read_image(path, frame=i) for i in range(frames)] if frames > 1 else [read_image(path)]
    pixels = np.stack([i.pixels for i in images]) if frames > 1 else images[0].pixels
    assert str(pixels.shape) == shape
    assert pixels.dtype == np.dtype(dtype).newbyteorder("=") and pixels.dtype.isnative
    # big-endian digests are over big-endian bytes
    assert hashlib.md5(pixels.astype(dtype).tobytes()).hexdigest()[:8] == digest
    header = images[0].header
    same = replace(header, notes=()) == replace(read_header(path), notes=())
    assert same or any(math.isnan(v) for pair in header.windows for v in pair)

@pytest.mark.parametrize("syntax", [
    ImplicitVRLittleEndian, ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless,
    JPEG2000Lossless, JPEGLSLossless
], ids=lambda u: u.keyword)
@pytest.mark.parametrize("kind", ["uint8", "uint16", "int16"])
def test_lossless_round_trip(tmp_path, ramp, syntax, kind):
    pixels = (ramp.astype("int32") - 32768).astype("int16") if kind == "int16" else ramp.astype(kind)
    ds = dataset(pixels)
    if syntax.is_encapsulated:
        ds.compress(syntax, generate_instance_uid=False)
        path = save(ds, tmp_path / "a.dcm")
    elif syntax == ExplicitVRBigEndian:
        ds.PixelData = pixels.byteswap().tobytes()
        path = save(ds, tmp_path / "a.dcm", syntax)
    else:
        path = save(ds, tmp_path / "a.dcm", syntax)
    image = read_image(path)
    assert image.pixels.dtype == pixels.dtype and np.array_equal(image.pixels, pixels)
    assert image.pixels.flags.writeable and image.header.syntax == syntax
    assert (image.decoder == "native") == (not syntax.is_encapsulated)

@pytest.mark.parametrize("bits", [12, 16])
def test_jpeg_lossless_and_htj2k(tmp_path, ramp, bits):
    imagecodecs = pytest.importorskip("imagecodecs")
    pixels = ramp >> (16 - bits)
    coded = {JPEGLosslessSV1: imagecodecs.jpeg_encode(pixels, lossless=True, predictor=1, bitspersample=bits),
             HTJ2KLossless: imagecodecs.htj2k_encode(pixels), HTJ2K: imagecodecs.htj2k_encode(pixels)}
    for syntax, frame in coded.items():
        path = encapsulated(dataset(pixels, BitsStored=bits, HighBit=bits - 1), tmp_path / "a.dcm", frame, syntax)
        image = read_image(path)
        assert image.pixels.dtype == np.uint16 and np.array_equal(image.pixels, pixels), syntax.keyword

def test_jpeg2000_with_another_precision_than_allocated_keeps_values_and_container(tmp_path, ramp):
    imagecodecs = pytest.importorskip("imagecodecs")
    small = (ramp >> 9).astype(np.uint8)  # 7 bits of 16 allocated: the codec answers in 8
    frame = imagecodecs.jpeg2k_encode(small, level=0, codecformat="j2k", reversible=True, bitspersample=8)
    image = read_image(encapsulated(dataset(ramp, BitsStored=8, HighBit=7), tmp_path / "a.dcm", frame,
                                    JPEG2000Lossless))
    assert image.pixels.dtype == np.uint16 and np.array_equal(image.pixels, small)

def test_signed_header_over_unsigned_jpeg2000(tmp_path):
    imagecodecs = pytest.importorskip("imagecodecs")
    signed = np.arange(-4096, 4096, dtype=np.int16).reshape(64, 128)  # 13 bits, two's complement
    frame = imagecodecs.jpeg2k_encode((signed.view(np.uint16) & 0x1FFF), level=0, codecformat="j2k", reversible=True,
                                      bitspersample=13)
    image = read_image(
        encapsulated(dataset(signed, BitsStored=13, HighBit=12), tmp_path / "a.dcm", frame, JPEG2000Lossless))
    assert image.pixels.dtype == np.int16 and np.array_equal(image.pixels, signed)

def test_unused_high_bits_are_cleared(tmp_path, ramp):
    overlay = ramp | 0xF000  # an old habit: an overlay in the bits above those stored
    image = read_image(save(dataset(overlay, BitsStored=12, HighBit=11), tmp_path / "a.dcm"))
    assert np.array_equal(image.pixels, ramp & 0x0FFF)

def test_frames_are_asked_for(tmp_path, ramp):
    path = save(dataset(np.stack([ramp, ramp[::-1]]), NumberOfFrames=2), tmp_path / "stack.dcm")
    with pytest.raises(MultiFrame, match=r"stack\.dcm: 2 frames \(NumberOfFrames 0028,0008\)\. .*frame=0"):
        read_image(path)
    assert np.array_equal(read_image(path, frame=1).pixels, ramp[::-1])
    for frame in (2, -1):
        with pytest.raises(MultiFrame):
            read_image(path, frame=frame)

def test_no_preamble_and_no_meta_but_pixels(tmp_path, ramp):
    for name, implicit in (("implicit", True), ("explicit", False)):
        ds = dataset(ramp)
        del ds.file_meta
        ds.save_as(tmp_path / name, implicit_vr=implicit, little_endian=True)
        assert np.array_equal(read_image(tmp_path / name).pixels, ramp)
        assert read_header(tmp_path / name).syntax == (ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian)


# --- header

@needs_data
def test_headers_of_real_mammograms():
    ge = read_header(DATA / "mammo/ge_senographe_RMLO_GH133.dcm")
    assert ge.windows == ((2653, 900), (2713, 750), (2569, 1050))
    assert ge.voi_function == "SIGMOID" and len(ge.voi_luts) == 3
    assert (ge.laterality, ge.laterality_source, ge.view, ge.intent) == ("R", "ImageLaterality", "MLO",
                                                                         "FOR PRESENTATION")
    assert (ge.burned_in, ge.implant, ge.modality, ge.bits_stored) == ("NO", "NO", "MG", 12)
    film = read_header(DATA / "mammo/ddsm_P_00173_benign_L_CC.dcm")
    assert (film.laterality, film.laterality_source, film.windows, film.voi_function) == ("L", "Laterality", (),
                                                                                          "LINEAR")
    # rows to posterior and columns to the left, yet a left breast: the CC orientation alone must not decide
    tomo = read_header(DATA / "mammo/dbt_4frames_128.dcm")
    assert (tomo.laterality, tomo.laterality_source, tomo.view, tomo.frames) == ("L", "FrameLaterality", "CC", 4)

def code(value):
    item = Dataset()
    item.CodeValue = value
    return Sequence([item])

@pytest.mark.parametrize("tags, side, source", [
    (dict(ImageLaterality="L", Laterality="R"), "L", "ImageLaterality"),
    (dict(ImageLaterality="", Laterality="R"), "R", "Laterality"),
    (dict(ImageLaterality="B", Laterality=""), "", ""),
    (dict(ViewPosition="MLO", PatientOrientation=["P", "FL"]), "R", "PatientOrientation"),
    (dict(ViewPosition="MLO", PatientOrientation=["A", "FR"]), "L", "PatientOrientation"),
    (dict(ViewPosition="MLO", PatientOrientation=["A", "HR"]), "R", "PatientOrientation"),
    (dict(ViewPosition="MLO", PatientOrientation=["P", "HL"]), "L", "PatientOrientation"),
    (dict(ViewCodeSequence=code("399368009"), PatientOrientation=["P", "FL"]), "R", "PatientOrientation"),
    (dict(ViewPosition="CC", PatientOrientation=["P", "L"]), "", ""),
    (dict(ViewPosition="ML", PatientOrientation=["P", "F"]), "", ""),
    (dict(ViewPosition="MLO", PatientOrientation="MLO"), "", ""),
    ({}, "", "")])
def test_laterality(tmp_path, ramp, tags, side, source):
    header = read_header(save(dataset(ramp, **tags), tmp_path / "a.dcm"))
    assert (header.laterality, header.laterality_source) == (side, source)

def test_view_from_its_code_agrees_with_the_dictionary(tmp_path, ramp):
    from pydicom.sr.codedict import codes
    from mammo_nb.mammo.reading.mammograms import VIEWS
    names = {
        "CranioCaudal": "CC", "MedioLateralObliqueProjection": "MLO", "MedioLateralProjection": "ML",
        "LateroMedial": "LM", "LateroMedialOblique": "LMO", "CaudoCranial": "FB",
        "SuperolateralToInferomedialOblique": "SIO", "InferomedialToSuperolateralOblique": "ISO",
        "CranioCaudalExaggeratedLaterally": "XCCL", "CranioCaudalExaggeratedMedially": "XCCM"
    }
    assert {VIEWS[getattr(codes.cid4014, name).value] for name in names} == set(names.values())
    for name, view in names.items():
        ds = dataset(ramp, ViewCodeSequence=code(getattr(codes.cid4014, name).value))
        assert read_header(save(ds, tmp_path / "a.dcm")).view == view
    assert read_header(save(dataset(ramp, ViewCodeSequence=code("R-1024A")), tmp_path / "a.dcm")).view == "XCCL"
    assert read_header(save(dataset(ramp, ViewPosition="MLO ", ViewCodeSequence=code("399162004")),
                            tmp_path / "a.dcm")).view == "MLO"
    assert read_header(save(dataset(ramp, ViewCodeSequence=code("1")), tmp_path / "a.dcm")).view == ""

@pytest.mark.parametrize("center, width, expected", [
    (None, None, ()), ("", "", ()), ("2048", "4096", ((2048, 4096),)), ("1\\2", "3\\4", ((1, 3), (2, 4))),
    ("1e2 ", " 50", ((100, 50),)), ("100", "0", ((100, 0),)), ("abc", "400", ((math.nan, 400),)),
    ("100", "", ((100, math.nan),)), ("1\\2\\3", "9", ((1, 9), (2, math.nan), (3, math.nan))),
    ("40,5", "80,0", ((40.5, 80),))])
def test_windows_as_found(tmp_path, ramp, center, width, expected):
    ds = dataset(ramp)
    for tag, text in ((0x00281050, center), (0x00281051, width)):
        if text is not None:
            ds[tag] = RawDataElement(Tag(tag), "DS", len(text), text.encode(), 0, True, True)  # unchecked
    windows = read_header(save(ds, tmp_path / "a.dcm", ImplicitVRLittleEndian)).windows
    assert len(windows) == len(expected) and all(
        np.array_equal(a, b, equal_nan=True) for a, b in zip(windows, expected))

def test_the_image_id_is_the_uid_or_the_name_of_the_file(tmp_path, ramp):
    assert read_header(save(dataset(ramp, PatientID="007"), tmp_path / "10049.dcm")).image_id == "1.2.3"
    ds = dataset(ramp, SOPInstanceUID=None, PatientID="007")
    ds.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    header = read_header(save(ds, tmp_path / "10049.dcm"))
    assert (header.image_id, header.patient_id) == ("10049", "007")


# --- errors

@pytest.mark.parametrize("tags, error, tag", [
    (dict(Rows=None), MissingTag, "Rows 0028,0010"), (dict(BitsStored=None), MissingTag, "BitsStored 0028,0101"),
    (dict(PhotometricInterpretation=None), MissingTag, "PhotometricInterpretation 0028,0004"),
    (dict(PixelData=None), MissingTag, "PixelData 7FE0,0010"),
    (dict(PixelRepresentation=None), MissingTag, "PixelRepresentation 0028,0103"),
    (dict(Columns=0), BadHeader, "Columns 0028,0011"), (dict(Rows=30001), BadHeader, "Rows 0028,0010"),
    (dict(Rows=29000, Columns=29000), BadHeader, "Rows 0028,0010"),  # 1.6 GiB at 16 bits
    (dict(BitsAllocated=13), BadHeader, "BitsAllocated 0028,0100"),
    (dict(BitsStored=17), BadHeader, "BitsStored 0028,0101"),
    (dict(PixelRepresentation=2), BadHeader, "PixelRepresentation 0028,0103"),
    (dict(SamplesPerPixel=3), BadHeader, "SamplesPerPixel 0028,0002"),
    (dict(Rows=41), CorruptPixels, "PixelData 7FE0,0010")])
def test_a_wrong_header_is_named(tmp_path, ramp, tags, error, tag):
    path = save(dataset(ramp, **tags), tmp_path / "10038.dcm")
    with pytest.raises(DicomError) as caught:
        read_image(path)
    assert type(caught.value) is error and caught.value.tag == tag and caught.value.remedy
    assert str(caught.value).startswith("10038.dcm: ") and f"({tag})" in str(caught.value)
    again = pickle.loads(pickle.dumps(caught.value))  # as it comes back from another process
    assert type(again) is error and str(again) == str(caught.value) and again.path == path

def test_what_is_no_dicom(tmp_path):
    for name, content in (("empty", b""), ("text", b"patient,laterality\n" * 40),
                          ("png", b"\x89PNG\r\n\x1a\n" + bytes(300)), ("zeros", bytes(4000))):
        (tmp_path / name).write_bytes(content)
        for read in (read_header, read_image):
            with pytest.raises(NotDicom, match=name):
                read(tmp_path / name)
    with pytest.raises(DicomError):
        read_image(tmp_path)  # a folder
    with pytest.raises(FileNotFoundError):
        read_image(tmp_path / "absent.dcm")

def test_compressed_pixels_with_no_transfer_syntax(tmp_path, ramp):
    ds = dataset(ramp)
    ds.compress(RLELossless, generate_instance_uid=False)
    del ds.file_meta.TransferSyntaxUID
    ds.save_as(tmp_path / "a.dcm", implicit_vr=False, little_endian=True)
    with pytest.raises(MissingTag, match="TransferSyntaxUID 0002,0010"):
        read_image(tmp_path / "a.dcm")

def test_the_size_in_the_codestream_must_be_that_of_the_header(tmp_path, ramp):
    ds = dataset(ramp)
    ds.compress(JPEG2000Lossless, generate_instance_uid=False)
    at = ds.PixelData.index(b"\xff\x4f\xff\x51") + 8
    # would be 7 GB to decode
    ds.PixelData = ds.PixelData[:at] + (60_000).to_bytes(4, "big") * 2 + ds.PixelData[at + 8:]
    with pytest.raises(CorruptPixels, match=r"\(60000, 60000, 1\) in the frame and \(40, 33, 1\)"):
        read_image(save(ds, tmp_path / "a.dcm"))

def test_a_frame_cut_short_in_a_whole_file_is_no_picture(tmp_path, ramp):
    imagecodecs = pytest.importorskip("imagecodecs")
    coded = {
        JPEGLosslessSV1: imagecodecs.jpeg_encode(ramp, lossless=True, predictor=1, bitspersample=16),
        HTJ2KLossless: imagecodecs.htj2k_encode(ramp), JPEG2000Lossless: imagecodecs.jpeg2k_encode(
            ramp, level=0, codecformat="j2k", reversible=True), JPEGLSLossless: imagecodecs.jpegls_encode(ramp)
    }
    for syntax, frame in coded.items():
        assert np.array_equal(read_image(encapsulated(dataset(ramp), tmp_path / "a.dcm", frame, syntax)).pixels, ramp)
        for kept in (.5, .9, .99):
            path = encapsulated(dataset(ramp), tmp_path / "a.dcm", frame[:int(len(frame) * kept)], syntax)
            with pytest.raises(CorruptPixels, match="PixelData 7FE0,0010"):
                read_image(path)

def test_a_file_cut_anywhere_is_a_typed_error(tmp_path, ramp):
    for syntax in (ExplicitVRLittleEndian, RLELossless, JPEG2000Lossless):
        ds = dataset(ramp)
        if syntax.is_encapsulated:
            ds.compress(syntax, generate_instance_uid=False)
        whole = save(ds, tmp_path / "a.dcm").read_bytes()
        for share in (.05, .2, .3, .5, .9):
            (tmp_path / "a.dcm").write_bytes(whole[:int(len(whole) * share)])
            with pytest.raises(DicomError):
                read_image(tmp_path / "a.dcm")

def test_a_small_file_cannot_ask_for_much_memory(tmp_path, ramp):
    import resource
    import zlib
    meta = save(dataset(ramp), tmp_path / "a.dcm", DeflatedExplicitVRLittleEndian).read_bytes()
    start = 132 + 12 + int.from_bytes(meta[140:144], "little")  # group length (0002,0000) tells where the rest begins
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = b"".join(packer.compress(bytes(2**20)) for _ in range(600)) + packer.flush()
    (tmp_path / "bomb.dcm").write_bytes(meta[:start] + bomb)
    assert (tmp_path / "bomb.dcm").stat().st_size < 2**20
    with pytest.raises(BadHeader, match="inflates to more than 256 MiB"):
        read_image(tmp_path / "bomb.dcm")
    ds = dataset(ramp)
    ds.compress(JPEG2000Lossless, generate_instance_uid=False)
    path = save(ds, tmp_path / "long.dcm")
    data = bytearray(path.read_bytes())
    at = data.index(b"\xff\x4f\xff\x51") - 4
    data[at:at + 4] = (0xFFFFFFF0).to_bytes(4, "little")  # a fragment of four gigabytes
    path.write_bytes(data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CorruptPixels, match="ends early"):
        read_image(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KiB

def test_sequences_without_end_in_each_other(tmp_path, ramp):
    whole = save(dataset(ramp), tmp_path / "a.dcm").read_bytes()
    # ReferencedImageSequence and its first item
    opened = b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
    (tmp_path / "a.dcm").write_bytes(whole[:whole.index(b"\x28\x00\x02\x00US")] + opened * 50_000)
    for read in (read_header, read_image):
        with pytest.raises(BadHeader, match="do not parse"):
            read(tmp_path / "a.dcm")

def test_a_frame_of_many_is_read_alone(tmp_path, monkeypatch):
    import mammo_nb.core.dicom as module
    stack = np.random.default_rng(2).integers(0, 4096, (9, 40, 33), np.uint16)
    plain = save(dataset(stack, NumberOfFrames=9), tmp_path / "plain.dcm")
    ds = dataset(stack, NumberOfFrames=9)
    ds.compress(JPEG2000Lossless, generate_instance_uid=False)
    coded, taken = save(ds, tmp_path / "coded.dcm"), []
    whole_read = module.Exact.read
    monkeypatch.setattr(module.Exact, "read", lambda self, n: taken.append(n) or whole_read(self, n))
    for path in (plain, coded):
        taken.clear()
        assert np.array_equal(read_image(path, frame=7).pixels, stack[7])
        assert sum(taken) < 2 * 40 * 33 * 2
    # 35 bits a frame: the second begins within a byte
    bits = np.random.default_rng(3).integers(0, 2, (3, 7, 5), np.uint8)
    ds = dataset(bits, NumberOfFrames=3, BitsAllocated=1, BitsStored=1, HighBit=0,
                 PixelData=np.packbits(bits.ravel(), bitorder="little").tobytes() + b"\0")
    path = save(ds, tmp_path / "bits.dcm")
    for i in range(3):
        assert np.array_equal(read_image(path, frame=i).pixels, bits[i])

def test_more_pixels_than_the_header_says(tmp_path, ramp):
    for extra, accepted in ((b"\0" * 66, True), (b"\0\1" * 33, False)):
        path = save(dataset(ramp, PixelData=ramp.tobytes() + extra), tmp_path / "a.dcm")
        if accepted:
            assert np.array_equal(read_image(path).pixels, ramp)
        else:
            with pytest.raises(CorruptPixels, match="2706 bytes of pixels, 2640 expected"):
                read_image(path)

def test_colour_maps_and_wrong_compressions(tmp_path, ramp):
    with pytest.raises(BadHeader, match="PALETTE COLOR is not grey"):
        read_image(save(dataset(ramp, PhotometricInterpretation="PALETTE COLOR"), tmp_path / "a.dcm"))
    ds = dataset(ramp)
    ds.compress(JPEG2000Lossless, generate_instance_uid=False)
    data = save(ds, tmp_path / "a.dcm").read_bytes()
    for uid, error in ((b"1.2.840.10008.1.2.4.70", CorruptPixels), (b"1.2.840.10008.1.2.1\0\0\0", CorruptPixels),
                       (b"1.2.3.4".ljust(22, b"\0"), UnsupportedSyntax)):
        (tmp_path / "a.dcm").write_bytes(data.replace(b"1.2.840.10008.1.2.4.90", uid, 1))
        with pytest.raises(error):
            read_image(tmp_path / "a.dcm")

def test_messages_hold_no_name_and_no_date(tmp_path, ramp, caplog):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save(dataset(ramp, Rows=41, PatientName="DOE^JANE", StudyDate="20230212", PatientBirthDate="19500101",
                     # not allowed in this tag: pydicom warns and quotes it
                     SOPInstanceUID="1.2.DOE"), tmp_path / "a.dcm")
    caplog.clear()
    with warnings.catch_warnings(record=True) as seen, pytest.raises(CorruptPixels) as caught:
        warnings.simplefilter("always")
        read_image(tmp_path / "a.dcm")
    assert not seen and not caplog.records and not any(word in str(caught.value)
                                                       for word in ("DOE", "1950", "20230212"))

@pytest.mark.parametrize("name", ["pydicom", "pydicom.pixels.decoders.base"])
def test_pydicom_logs_nothing_while_a_file_is_read_and_as_before_afterwards(name, tmp_path, caplog, capfd):
    own, top = logging.getLogger(name), logging.getLogger("pydicom")
    handler, before = logging.StreamHandler(), list(top.handlers)
    top.addHandler(handler)   # as pydicom.config.debug does
    try:
        with pytest.raises(CorruptPixels), typed_errors(CorruptPixels, tmp_path, "it fails"):
            own.error("DOE^JANE")
            raise ValueError
        assert not caplog.records and not capfd.readouterr().err
        own.error("heard")
        assert [r.message for r in caplog.records] == ["heard"] and "heard" in capfd.readouterr().err
    finally:
        top.removeHandler(handler)
    assert top.handlers == before

SMALL = [
    "MR_small_RLE", "MR_small_bigendian", "MR_small_implicit", "MR_small_jp2klossless", "MR_small_jpeg_ls_lossless",
    "image_dfl", "JPEG2000-embedded-sequence-delimiter"
]

@needs_data
@pytest.mark.parametrize("name", SMALL)
def test_damaged_bytes_give_an_image_or_a_typed_error(tmp_path, name):
    whole, rng, read = (DATA / f"dicom/pydicom/{name}.dcm").read_bytes(), np.random.default_rng(7), 0
    for i in range(60):
        data = bytearray(whole)
        for at in rng.integers(0, 1500 if i % 2 else len(data), 1 + i % 5):
            data[at] ^= 1 << rng.integers(8)  # the header, or anywhere
        if i % 4 == 0:
            del data[rng.integers(len(data)):]
        (tmp_path / "a.dcm").write_bytes(data)
        for read_one in (read_header, read_image):
            try:
                result = read_one(tmp_path / "a.dcm")
            except DicomError as error:
                assert str(error).startswith("a.dcm: ")
            else:
                if read_one is read_image:
                    read += 1
                    assert result.pixels.shape == (result.header.rows,
                                                   result.header.columns) and result.pixels.dtype.kind in "iu"
    assert read or "embedded" in name  # else nothing but errors would have been seen
