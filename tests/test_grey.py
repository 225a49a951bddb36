"""core/grey: files that say the same picture in other words give the same crop; what cannot be used is passed over with
a note; values by hand and by pydicom."""
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset, write_file_meta_info
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from pydicom.sequence import Sequence
from pydicom.tag import Tag
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from mammo_nb.core.dicom import read_frame
from mammo_nb.core.grey import grey_levels, settled
from mammo_nb.core.headers import BadHeader, CorruptPixels
from mammo_nb.mammo.crops import cut_breast
from mammo_nb.mammo.recipes import Crops

CENTER, WIDTH = 2348, 3002


def breast(rows=400, columns=300):
    "A half disc of 12 bits at the left edge, with noise, on air of 100."
    y, x = np.mgrid[:rows, :columns]
    r = (x / (.7 * columns))**2 + ((y - rows / 2) / (.4 * rows))**2
    noise = np.random.default_rng(0).integers(0, 60, r.shape)
    return np.where(r < 1, 3600 - 1800 * r + noise, 100 + noise / 8).astype(np.uint16)


def dataset(pixels, **tags):
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    size = 8 * pixels.dtype.itemsize
    base = dict(SOPClassUID="1.2.840.10008.5.1.4.1.1.1.2", SOPInstanceUID="1.2.3", Modality="MG", Rows=pixels.shape[0],
                Columns=pixels.shape[1], SamplesPerPixel=1, PhotometricInterpretation="MONOCHROME2", BitsAllocated=size,
                BitsStored=12, HighBit=11, PixelRepresentation=int(pixels.dtype.kind == "i"), WindowCenter=CENTER,
                WindowWidth=WIDTH, PixelData=pixels.tobytes())
    base |= tags
    base["HighBit"] = base["BitsStored"] - 1
    for name, value in base.items():
        if value is not None:
            setattr(ds, name, value)
    ds["PixelData"].VR = "OW" if size > 8 else "OB"
    return ds


def cut(ds, folder, settings=Crops()):
    path = folder / "a.dcm"
    ds.save_as(path, enforce_file_format=True)
    return cut_breast(read_frame(path), settings)


def items(**tags):
    item = Dataset()
    for name, value in tags.items():
        setattr(item, name, value)
    return Sequence([item])


def table(entries, first=0, bits=16):
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(entries) & 0xFFFF, first, bits])
    item.add_new("LUTData", "OW", np.asarray(entries, np.uint16).tobytes())
    return Sequence([item])


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    "The crop of the plain file, checked by hand: its window over its box, cut off to whole levels."
    crop = cut(dataset(breast()), tmp_path_factory.mktemp("base"))
    box = crop.box
    part = breast()[box.y0:box.y1, box.x0:box.x1].astype(float)
    assert np.abs(crop.grey - np.clip((part - (CENTER - .5)) / (WIDTH - 1) + .5, 0, 1) * 255).max() <= 1
    assert crop.notes == () and crop.window == (CENTER, WIDTH)
    return crop


def same(crop, base):
    assert [crop.box.x0, crop.box.y0, crop.box.x1, crop.box.y1] == [base.box.x0, base.box.y0, base.box.x1, base.box.y1]
    assert np.abs(crop.grey.astype(int) - base.grey).max() <= 1


LINE = np.clip((np.arange(4096) - (CENTER - .5)) / (WIDTH - 1) + .5, 0, 1) * 65535
FLIPPED = 4095 - CENTER + 1
groups = lambda **tags: Sequence([Dataset()]) if not tags else items(**tags)
WAYS = {
    "slope 1, intercept 0": lambda: dataset(breast(), RescaleSlope=1, RescaleIntercept=0),
    "signed, intercept 2048": lambda: dataset(breast().astype(np.int16) - 2048, RescaleSlope=1, RescaleIntercept=2048),
    "slope 1/4": lambda: dataset(breast() * 4, BitsStored=14, RescaleSlope="0.25", RescaleIntercept=0),
    "slope -1": lambda: dataset(4095 - breast(), RescaleSlope=-1, RescaleIntercept=4095),
    "modality table": lambda: dataset(4095 - breast(), ModalityLUTSequence=table(np.arange(4096)[::-1])),
    "MONOCHROME1": lambda: dataset(4095 - breast(), WindowCenter=FLIPPED, PhotometricInterpretation="MONOCHROME1"),
    "MONOCHROME1, INVERSE": lambda: dataset(4095 - breast(), WindowCenter=FLIPPED, PresentationLUTShape="INVERSE",
                                            PhotometricInterpretation="MONOCHROME1"),
    "MONOCHROME2, INVERSE": lambda: dataset(4095 - breast(), WindowCenter=FLIPPED, PresentationLUTShape="INVERSE"),
    "VOI table": lambda: dataset(breast(), WindowCenter=None, WindowWidth=None, VOILUTSequence=table(np.round(LINE))),
    "falling VOI table": lambda: dataset(4095 - breast(), WindowCenter=None, WindowWidth=None,
                                         VOILUTSequence=table(np.round(LINE[::-1]))),
    "window of the frame": lambda: dataset(
        breast(), WindowCenter=None, WindowWidth=None, PerFrameFunctionalGroupsSequence=items(
            FrameVOILUTSequence=items(WindowCenter=CENTER, WindowWidth=WIDTH))),
    "shared window and rescale": lambda: dataset(
        breast().astype(np.int16) - 2048, WindowCenter=None, WindowWidth=None, SharedFunctionalGroupsSequence=items(
            FrameVOILUTSequence=items(WindowCenter=CENTER, WindowWidth=WIDTH),
            PixelValueTransformationSequence=items(RescaleSlope=1, RescaleIntercept=2048, RescaleType="US"))),
    "shared VOI table": lambda: dataset(
        breast(), WindowCenter=None, WindowWidth=None, SharedFunctionalGroupsSequence=items(
            FrameVOILUTSequence=items(VOILUTSequence=table(np.round(LINE))))),
    "BitsStored 10": lambda: dataset(breast(), BitsStored=10),
    "a sign that is none": lambda: dataset(breast(), PixelRepresentation=1),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_same_picture_in_other_words(tmp_path, base, way):
    same(cut(WAYS[way](), tmp_path), base)


@pytest.mark.parametrize("padding, mono1", [(0, False), (65535, False), (-32768, False), (0, True)])
def test_padding_is_background(tmp_path, base, padding, mono1):
    stored = 4095 - breast() if mono1 else breast()
    stored = stored.astype(np.int16 if padding < 0 else np.uint16)
    stored[:, 260:] = stored[:20] = padding  # away from the breast
    tags = dict(WindowCenter=FLIPPED, PhotometricInterpretation="MONOCHROME1") if mono1 else {}
    ds = dataset(stored, BitsStored=16, **tags)
    ds.add_new("PixelPaddingValue", "SS" if padding < 0 else "US", padding)
    same(cut(ds, tmp_path), base)
    whole = settled(read_frame(tmp_path / "a.dcm").decode())
    grey, _, _ = grey_levels(whole.pixels, whole.header)
    assert grey[:20].max() <= grey[30, 200]  # no brighter than air
    # without a window, padding does not stretch the range
    windowless = dataset(stored, BitsStored=16, **tags | dict(WindowCenter=None, WindowWidth=None))
    windowless["PixelPaddingValue"] = ds["PixelPaddingValue"]
    assert cut(windowless, tmp_path).grey.mean() > base.grey.mean() / 2


def test_padding_is_a_range_and_out_of_smaller_pictures(tmp_path, base):
    stored = breast()
    stored[:, 260:] = np.random.default_rng(1).integers(60_000, 65_536, (400, 40))
    ds = dataset(stored, BitsStored=16)
    ds.add_new("PixelPaddingValue", "US", 60_000)
    ds.add_new("PixelPaddingRangeLimit", "US", 65_535)
    from pydicom.uid import JPEG2000Lossless
    ds.compress(JPEG2000Lossless, generate_instance_uid=False)
    small = cut(ds, tmp_path, Crops(height=100, width=60, box_size=100))
    assert small.image.scale == 1 and small.grey.shape[0] <= 100
    assert cut(ds, tmp_path).box.x1 <= 260
    same(cut(ds, tmp_path), base)


def test_slope_and_tables_are_those_of_pydicom(tmp_path):
    ds = dataset(breast(), RescaleSlope="1.5", RescaleIntercept="-300.25")
    ours = settled(read_frame(_saved(ds, tmp_path)).decode()).pixels
    np.testing.assert_allclose(ours, apply_modality_lut(breast(), ds), rtol=1e-6)
    curve = np.round(4095 / (1 + np.exp(-4 * (np.arange(3000) - 1500) / 1802)))
    ds = dataset(breast(), WindowCenter=None, WindowWidth=None, VOILUTSequence=table(curve, first=500, bits=12))
    image = settled(read_frame(_saved(ds, tmp_path)).decode())
    ours, _, _ = grey_levels(image.pixels, image.header)
    assert np.array_equal(ours, (apply_voi_lut(breast(), ds) / 4095 * 255 + 1e-4).astype(np.uint8))


def test_a_table_whose_first_value_lost_its_sign(tmp_path):
    stored = breast().astype(np.int16) - 2048
    ds = dataset(stored, WindowCenter=None, WindowWidth=None, VOILUTSequence=table(np.round(LINE), first=65536 - 2048))
    image = settled(read_frame(_saved(ds, tmp_path)).decode())
    assert np.abs(grey_levels(image.pixels, image.header)[0] - LINE[breast()] / 257).max() <= 1


def test_a_damaged_table_is_a_note(tmp_path):
    ds = dataset(breast(), WindowCenter=None, WindowWidth=None, VOILUTSequence=table(np.round(LINE[:100])))
    ds.VOILUTSequence[0].LUTDescriptor = [4000, 0, 16]
    crop = cut(ds, tmp_path)
    assert "cannot be understood" in crop.notes[0] and crop.grey.max() == 255


def _saved(ds, folder) -> Path:
    ds.save_as(folder / "a.dcm", enforce_file_format=True)
    return folder / "a.dcm"


# ---- windows
def raw(ds, keyword, value):
    tag = Tag(keyword)
    value += b" " * (len(value) % 2)
    ds[tag] = RawDataElement(tag, "DS", len(value), value, 0, False, True)


GOOD = [(b"0\\2348", b"0\\3002"), (b"30000\\2348", b"100\\3002"), (b"NaN\\2348", b"9\\3002"), (b"2348", b"3002\0"),
        (b"2348,0", b"3002,0"), (b"  2348 ", b" 3002"), (b"2348\\2348", b"3002"), (b"1\\2348", b"1e400\\3002")]
BAD = [(b"2348", b"0"), (b"2348", b"-1802"), (b"2348", b"1e400"), (b"NaN", b"NaN"), (b"30000", b"100"),
       (b"-9000", b"100"), (b"2348", b"1"), (b"inf", b"100")]


@pytest.mark.parametrize("center, width", GOOD, ids=str)
def test_the_first_window_that_means_something(tmp_path, base, center, width):
    ds = dataset(breast())
    raw(ds, "WindowCenter", center)
    raw(ds, "WindowWidth", width)
    crop = cut(ds, tmp_path)
    same(crop, base)
    assert crop.window == (CENTER, WIDTH)


@pytest.mark.parametrize("faithful", [False, True])
@pytest.mark.parametrize("center, width", BAD, ids=str)
def test_without_a_window_that_means_something_the_range_is_shown(tmp_path, base, center, width, faithful):
    ds = dataset(breast())
    raw(ds, "WindowCenter", center)
    raw(ds, "WindowWidth", width)
    crop = cut(ds, tmp_path, Crops(faithful=faithful))
    if faithful and np.isfinite([float(center), float(width)]).all() and float(width) > 1:
        assert crop.grey.min() == crop.grey.max()  # as the original
        return
    box = crop.box
    part = breast()[box.y0:box.y1, box.x0:box.x1].astype(float)
    wanted = (part - part.min()) / (part.max() - part.min()) * 255
    assert crop.notes and crop.window is None and np.abs(crop.grey - wanted).max() <= 1


@pytest.mark.parametrize("function", [b"LINEAR\0\0", b"IDENTITY", b"linear"])
def test_functions_as_found(tmp_path, base, function):
    ds = dataset(breast())
    ds[0x00281056] = RawDataElement(Tag(0x00281056), "CS", len(function), function, 0, False, True)
    crop = cut(ds, tmp_path)
    same(crop, base)
    assert bool(crop.notes) == (function == b"IDENTITY")


# ---- bytes that disagree with the header
def raw_file(ds, implicit, named) -> bytes:
    "A file whose elements are implicit or explicit, whatever transfer syntax it names."
    meta = ds.file_meta
    meta.TransferSyntaxUID = named
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    del ds.file_meta
    f = DicomBytesIO()
    f.is_little_endian, f.is_implicit_VR = True, False
    f.write(bytes(128) + b"DICM")
    write_file_meta_info(f, meta, enforce_standard=True)
    f.is_implicit_VR = implicit
    write_dataset(f, ds)
    return f.getvalue()


@pytest.mark.parametrize("implicit, named", [(True, ExplicitVRLittleEndian), (False, ImplicitVRLittleEndian),
                                             (False, "1.2.840.10008.1.2.4.80"), (True, "1.2.840.10008.1.2.4.80"),
                                             (False, "1.2.840.113619.5.2"), (False, "1.2.840.10008.1.2.4.102")])
def test_another_encoding_than_the_transfer_syntax_names(tmp_path, base, implicit, named):
    (tmp_path / "a.dcm").write_bytes(raw_file(dataset(breast()), implicit, named))
    crop = cut_breast(read_frame(tmp_path / "a.dcm"))
    same(crop, base)
    assert crop.notes


@pytest.mark.parametrize("excess", [1, 7, 100, 1000, 4097])
def test_bytes_after_the_pixels(tmp_path, base, excess):
    ds = dataset(breast())
    ds.PixelData += bytes([7]) * (excess + excess % 2)
    ds["PixelData"].VR = "OW"
    crop = cut(ds, tmp_path)
    same(crop, base)
    assert "after the pixels" in crop.notes[0]


@pytest.mark.parametrize("byte", [b"\0", b"\xff", b" "])
def test_an_odd_number_of_bytes_is_padded_with_anything(tmp_path, byte):
    eight = (breast(401, 301) >> 4).astype(np.uint8)
    ds = dataset(eight, BitsStored=8, WindowCenter=128, WindowWidth=256)
    ds.PixelData += byte
    ds["PixelData"].VR = "OB"
    assert np.array_equal(read_frame(_saved(ds, tmp_path)).decode().pixels, eight)


def test_fewer_rows_or_columns_than_the_file_are_an_error(tmp_path):
    for tags in ({"Rows": 390}, {"Columns": 290}):
        with pytest.raises(CorruptPixels):
            read_frame(_saved(dataset(breast(), **tags), tmp_path))


def test_pixels_that_are_not_square_become_square(tmp_path):
    flat = breast()[::2]
    crop = cut(dataset(flat, PixelAspectRatio=[2, 1]), tmp_path)
    square = cut(dataset(breast()), tmp_path)
    assert np.abs(np.subtract(crop.grey.shape, square.grey.shape)).max() <= 8


# ---- colours
def coloured(values, photometric="RGB", **tags):
    ds = dataset(values, PhotometricInterpretation=photometric, SamplesPerPixel=3, PlanarConfiguration=0, BitsStored=8,
                 WindowCenter=None, WindowWidth=None, **tags)
    return ds


def test_equal_channels_are_grey_and_colours_are_refused(tmp_path):
    eight = (breast() >> 4).astype(np.uint8)
    image = read_frame(_saved(coloured(np.dstack([eight] * 3)), tmp_path)).decode()
    assert np.array_equal(image.pixels, eight) and "equal channels" in image.header.notes[0]
    crop = cut_breast(read_frame(tmp_path / "a.dcm"))
    box = crop.box
    assert np.array_equal(crop.grey, eight[box.y0:box.y1, box.x0:box.x1]) and crop.notes
    with pytest.raises(BadHeader, match="differ by up to"):
        read_frame(_saved(coloured(np.dstack([eight, eight // 2, eight])), tmp_path)).decode()


@pytest.mark.parametrize("grey", [True, False])
def test_a_palette_of_greys_is_grey(tmp_path, grey):
    eight = (breast() >> 4).astype(np.uint8)
    ds = dataset(255 - eight, PhotometricInterpretation="PALETTE COLOR", BitsStored=8, WindowCenter=None,
                 WindowWidth=None)
    ramp = np.arange(256)[::-1] * 257
    for colour in ("Red", "Green", "Blue"):
        setattr(ds, f"{colour}PaletteColorLookupTableDescriptor", [256, 0, 16])
        entries = ramp if grey or colour != "Blue" else ramp // 2
        setattr(ds, f"{colour}PaletteColorLookupTableData", entries.astype("<u2").tobytes())
    frame = read_frame(_saved(ds, tmp_path))
    if grey:
        assert np.array_equal(frame.decode().pixels, eight.astype(np.uint16) * 257)
    else:
        with pytest.raises(BadHeader, match="a colour picture"):
            frame.decode()
