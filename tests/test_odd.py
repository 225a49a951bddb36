"""The table of odd files in nbs/docs/mammography.md: each row has files made here, and `check` says every text that the
row quotes."""
import re

import numpy as np
import pytest
from conftest import ROOT
from odd import breast, dataset, save
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless
from test_blank import put
from test_grey import raw_file, table
from test_multiframe import volume
from test_reduced import j2k
from test_views import NO_IMAGES, SPECIAL, no_image

from mammo_nb.mammo.tools.check import check_folder, print_check

PAGE = (ROOT / "nbs/docs/mammography.md").read_text().split("## Odd files")[1]
ROWS = {cells[0]: re.findall("`([^`]+)`", cells[2]) for cells in (
    [cell.strip() for cell in line.strip("|").split(" | ")] for line in PAGE.splitlines() if line.startswith("| "))
    if cells[0] != "kind"}


def j2k_file(pixels, bits, stored, signed):
    d = dataset(BitsStored=stored, HighBit=stored - 1, PixelRepresentation=int(signed))
    d.PixelData = encapsulate([j2k(pixels, bits)])
    d["PixelData"].VR, d["PixelData"].is_undefined_length = "OB", True
    d.file_meta.TransferSyntaxUID = JPEG2000Lossless
    return d


def coloured(channels, **tags):
    return dataset(channels, SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0,
                   Rows=channels.shape[0], Columns=channels.shape[1], **tags)


def grey_chain(folder):
    ways = {"slope": dict(RescaleSlope=2, RescaleIntercept=0),
            "modality": dict(ModalityLUTSequence=table(np.arange(4096))),
            "voi": dict(WindowCenter=None, WindowWidth=None, VOILUTSequence=table(np.arange(4096))),
            "inverse": dict(PresentationLUTShape="INVERSE"), "padding": dict(PixelPaddingValue=0)}
    for name, tags in ways.items():
        save(dataset(patient=name, **tags), folder / f"{name}.dcm")


def windows(folder):
    for k, (center, width) in enumerate([("1e999", "4000"), ("nan", "4000"), (2000, 0), (70_000, 100)]):
        d = dataset(patient=str(k), WindowCenter=None, WindowWidth=None)
        d.add_new("WindowCenter", "LO" if isinstance(center, str) else "DS", center)
        d.add_new("WindowWidth", "LO" if isinstance(width, str) else "DS", width)
        save(d, folder / f"{k}.dcm")


def streams(folder):
    save(j2k_file(breast().astype(np.int16) - 2048, 12, 12, False), folder / "signed.dcm")
    save(j2k_file(breast(), 12, 10, False), folder / "bits.dcm")


def negative(folder):
    y, x = np.mgrid[:320, :256]
    truth = (x * 10 - y * 5 - 700 + np.random.default_rng(0).integers(0, 30, x.shape)).astype(np.int16)
    save(dataset(truth.view(np.uint16) & 0xFFF), folder / "a.dcm")


def encodings(folder):
    (folder / "implicit.dcm").write_bytes(raw_file(dataset(), True, "1.2.840.10008.1.2.1"))
    d = dataset(patient="P2")
    d.PixelData += bytes([7]) * 100
    save(d, folder / "excess.dcm")


def tomosynthesis(folder):
    save(volume(), folder / "bto.dcm")


def special(folder):
    for name, (d, _) in SPECIAL.items():
        save(d, folder / f"{name}.dcm")


def no_images(folder):
    for name, (class_uid, modality) in NO_IMAGES.items():
        save(no_image(class_uid, modality), folder / f"{name}.dcm")
    (folder / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    (folder / "._a.dcm").write_bytes(bytes(200))


def twice(folder):
    d = dataset()
    save(d, folder / "a.dcm")
    save(d, folder / "b.dcm")


def studies(folder):
    for k in "12":
        save(dataset(breast(seed=int(k)), StudyInstanceUID=f"1.2.3.{k}"), folder / f"{k}.dcm")


def packed(folder):
    save(dataset(), folder / "a.dcm")
    for name in ("b.dcm.gz", "c.zip"):
        (folder / name).write_bytes(b"packed")


def unmatched(folder):
    save(dataset(), folder / "a.dcm")
    save(dataset(breast(seed=1)), folder / "b.dcm")
    (folder / "t.csv").write_text("image_id,laterality,view\na,R,CC\n")


EIGHT = (breast() >> 4).astype(np.uint8)
MAKERS = {
    "rescale": grey_chain, "window": windows, "stream": streams, "negative": negative, "header": encodings,
    "colour": lambda folder: save(coloured(np.dstack([EIGHT] * 3)), folder / "a.dcm"),
    "real": lambda folder: save(coloured(np.dstack([EIGHT, EIGHT // 2, EIGHT])), folder / "a.dcm"),
    "tomosynthesis,": tomosynthesis, "black,": put, "ultrasound,": special, "reports,": no_images, "the": twice,
    "no": lambda folder: save(dataset(patient=""), folder / "a.dcm"), "two": studies, "packed": packed, "a": unmatched,
}


def test_every_row_has_files():
    assert len(ROWS) == len(MAKERS) and all(ROWS.values())
    assert [kind.split()[0].rstrip(",") for kind in ROWS] == [name.rstrip(",") for name in MAKERS]


@pytest.mark.parametrize("kind", ROWS)
def test_check_names_each_kind(kind, tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    maker = next(make for name, make in MAKERS.items() if kind.split()[0].rstrip(",") == name.rstrip(","))
    maker(folder)
    given = folder / "t.csv"
    found = check_folder(folder, table=given if given.exists() else None, workers=1)
    capsys.readouterr()
    print_check(found)
    printed = capsys.readouterr().out
    said = "\n".join([*found["problems"], *found["error"], *printed.splitlines()[-2:]])
    assert not [text for text in ROWS[kind] if text not in said], said
    failed = found["error"].ne("")
    assert failed.all() if kind == "real colour" else not failed.any(), said


def test_a_plain_mammogram_has_no_problem(tmp_path):
    save(dataset(), tmp_path / "a.dcm")
    assert check_folder(tmp_path, workers=1)["problems"].tolist() == [""]
