"What lies in a study beside mammograms is recognised, named and not predicted."
import numpy as np
import pandas as pd
import pytest
from odd import breast, code, dataset, save
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from test_predict import mammo_nb, weights  # noqa: F401  (a fixture)

from mammo_nb.mammo.reading.mammograms import NO_STANDARD
from mammo_nb.mammo.reading.mammograms import read_header

CLASS = "1.2.840.10008.5.1.4.1.1."


def modified(modifier, **tags):
    return dataset(ViewPosition=None, ViewCodeSequence=Sequence([code("399162004", [modifier])]), **tags)


def hologic():
    d = dataset(SOPClassUID=CLASS + "7", PresentationIntentType=None)
    block = d.private_block(0x7E01, "HOLOGIC, Inc.", create=True)
    block.add_new(0x02, "LO", "HOLOGIC, Inc.")
    return d


SPECIAL = {  # name -> (file, what it is called)
    "us": (dataset(SOPClassUID=CLASS + "6.1", Modality="US"), "ultrasound"),
    "us_by_modality": (dataset(Modality="US"), "ultrasound"),
    "us_colour": (dataset(np.zeros((64, 64, 3), np.uint8), SOPClassUID=CLASS + "6.1", Modality="US", SamplesPerPixel=3,
                          PhotometricInterpretation="RGB", PlanarConfiguration=0, Rows=64, Columns=64), "ultrasound"),
    "mr": (dataset(SOPClassUID=CLASS + "4", Modality="MR"), "MR"),
    "ct": (dataset(SOPClassUID=CLASS + "2", Modality="CT", SeriesDescription="R CC Tomo"),
           "tomosynthesis as CT slices"),
    "projection": (dataset(SOPClassUID=CLASS + "13.1.4"), "tomosynthesis projection"),
    "hologic": (hologic(), "tomosynthesis as secondary capture"),
    "dose": (dataset(SOPClassUID=CLASS + "7", Modality="OT", ImageLaterality=None, ViewPosition=None),
             "secondary capture of OT"),
    "raw": (dataset(SOPClassUID=CLASS + "1.2.1", PresentationIntentType="FOR PROCESSING"), "for processing"),
    "specimen": (dataset(ImageType=["ORIGINAL", "PRIMARY", "", "SPECIMEN"]), "specimen"),
    "spot": (modified("399055006"), "spot compression"),
    "magnification": (modified("R-102D6"), "magnification"),
    "factor": (dataset(EstimatedRadiographicMagnificationFactor="1.8"), "magnification"),
    "displaced": (modified("399209000"), "implant displaced"),
    "ccid": (dataset(ViewPosition="CCID"), "implant displaced"),
    "lateral": (dataset(ViewPosition="LM"), "view LM"),
}
STANDARD = {  # name -> (file, side, view)
    "plain": (dataset(), "R", "CC"),
    "film": (dataset(SOPClassUID=CLASS + "7", PresentationIntentType=None), "R", "CC"),
    "without_modality": (dataset(Modality=None, PresentationIntentType=None), "R", "CC"),
    "rmlo": (dataset(ViewPosition="RMLO", ImageLaterality=None), "R", "MLO"),
    "lcc": (dataset(ViewPosition="LCC", ImageLaterality=None), "L", "CC"),
    "words": (dataset(ViewPosition="CRANIO-CAUDAL", ImageLaterality="L"), "L", "CC"),
    "small": (dataset(ImageLaterality="r"), "R", "CC"),
    "coded": (dataset(ViewPosition=None, ViewCodeSequence=Sequence([code("399368009")])),
              "R", "MLO"),
    "synthetic": (dataset(ImageType=["DERIVED", "PRIMARY", "TOMO", "GENERATED_2D"]), "R", "CC"),
}


def by_region(value):
    region = code("76752008")
    region.AnatomicRegionModifierSequence = Sequence([code(value)])
    return dataset(ImageLaterality=None, AnatomicRegionSequence=Sequence([region]))


def by_frame(side):
    anatomy, group = Dataset(), Dataset()
    anatomy.FrameLaterality = side
    group.FrameAnatomySequence = Sequence([anatomy])
    return dataset(ImageLaterality=None, PerFrameFunctionalGroupsSequence=Sequence([group]))


@pytest.mark.parametrize("made, side, source", [
    (by_region("24028007"), "R", "AnatomicRegionModifierSequence"), (by_region("G-A101"), "L",
                                                                      "AnatomicRegionModifierSequence"),
    (by_frame("L"), "L", "FrameLaterality"), (dataset(ImageLaterality=None, Laterality="LEFT"), "L", "Laterality"),
    (dataset(ImageLaterality="B"), "", "")])
def test_the_side_is_found_wherever_it_stands(tmp_path, made, side, source):
    header = read_header(save(made, tmp_path / "a.dcm"))
    assert (header.laterality, header.laterality_source) == (side, source)


def no_image(class_uid, modality):
    d = Dataset()
    d.file_meta = FileMetaDataset()
    d.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    d.SOPClassUID, d.SOPInstanceUID, d.Modality, d.PatientID = class_uid, generate_uid(), modality, "P1"
    return d


NO_IMAGES = {"sr": (CLASS + "88.50", "SR"), "pr": (CLASS + "11.1", "PR"), "ko": (CLASS + "88.59", "KO"),
             "pdf": (CLASS + "104.1", "DOC")}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study") / "in"
    for name, (d, *_) in (SPECIAL | STANDARD).items():
        save(d, folder / f"{name}.dcm")
    for name, (class_uid, modality) in NO_IMAGES.items():
        save(no_image(class_uid, modality), folder / f"{name}.dcm")
    directory = no_image("1.2.840.10008.1.3.10", "")
    save(directory, folder / "dicomdir")
    save(directory, folder / "DICOMDIR.dcm")
    (folder / "._plain.dcm").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X        " + bytes(120))
    return folder


@pytest.fixture(scope="module")
def predicted(study, weights, tmp_path_factory):  # noqa: F811
    output = tmp_path_factory.mktemp("predicted")
    done = mammo_nb("predict", study, "-o", output, "--weights", weights, "--workers", 1)
    return done, pd.read_csv(output / "per_image.csv").set_index("file"), output


def test_each_special_image_is_named_and_has_no_probability(predicted):
    done, table, _ = predicted
    assert done.returncode == 0 and table["error"].isna().all()
    for name, (_, called) in SPECIAL.items():
        row = table.loc[f"{name}.dcm"]
        assert np.isnan(row["probability"]) and row["note"].startswith(f"{NO_STANDARD}: {called};"), (name, row["note"])


def test_standard_mammograms_are_predicted_with_their_side_and_view(predicted):
    _, table, _ = predicted
    for name, (_, side, view) in STANDARD.items():
        row = table.loc[f"{name}.dcm"]
        assert 0 < row["probability"] < 1 and (row["laterality"], row["view"]) == (side, view), name


def test_what_is_no_image_is_counted_and_no_failure(predicted):
    done, table, _ = predicted
    for name, (_, modality) in NO_IMAGES.items():
        assert table.loc[f"{name}.dcm", "note"].startswith(f"not an image: {modality}, ")
        assert f"1 not an image: {modality}" in done.stdout
    assert table.loc["DICOMDIR.dcm", "note"].startswith("not an image: Media Storage Directory")
    assert not {"dicomdir", "._plain.dcm"} & set(table.index) and "2 other files left out" in done.stdout


def test_means_of_breasts_have_standard_views_only(study, predicted, weights, tmp_path):  # noqa: F811
    _, table, output = predicted
    done = mammo_nb("predict", study, "-o", tmp_path / "all", "--weights", weights, "--all-views", "--workers", 1)
    every = pd.read_csv(tmp_path / "all/per_image.csv").set_index("file")
    assert done.returncode == 0   # the colour ultrasound has equal channels
    grey = [f"{name}.dcm" for name in SPECIAL if name != "us_colour"]
    assert every.loc[grey, "probability"].notna().all()
    assert every.loc[grey, "note"].str.startswith(f"{NO_STANDARD}: ").all()
    first, second = (pd.read_csv(p / "per_breast.csv").set_index(["patient_id", "laterality"])["images"]
                     for p in (output, tmp_path / "all"))
    assert first.to_dict() == second.to_dict()


def test_check_names_them_and_crops_leaves_out_what_is_no_image(study, tmp_path):
    done = mammo_nb("check", study, "-o", tmp_path / "check.csv", "--sample", 0)
    table = pd.read_csv(tmp_path / "check.csv", keep_default_na=False).set_index("file")
    assert done.returncode == 0 and table["error"].eq("").all()
    for name, (_, called) in SPECIAL.items():
        problems = table.loc[f"{name}.dcm", "problems"]
        assert called in problems or f"modality {SPECIAL[name][0].Modality}" in problems, name
    for name, (_, modality) in NO_IMAGES.items():
        assert f"not an image: {modality}" in table.loc[f"{name}.dcm", "problems"]
    for name, (class_uid, modality) in NO_IMAGES.items():
        save(no_image(class_uid, modality), tmp_path / f"few/{name}.dcm")
    save(dataset(breast()), tmp_path / "few/good.dcm")
    done = mammo_nb("crops", tmp_path / "few", "-o", tmp_path / "crops", "--detector", "otsu", "--workers", 1)
    assert done.returncode == 0 and "1 of 1 files cropped" in done.stdout and "not an image: SR" in done.stdout
