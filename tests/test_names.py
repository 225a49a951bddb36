"Files of any name are found, predicted once, and grouped by patient, exam and side."
import os

import pandas as pd
import pytest
from odd import breast, dataset, save
from test_predict import mammo_nb, weights  # noqa: F401  (a fixture)

from mammo_nb.core.dicom import find_files
from mammo_nb.core.pictures import write_png
from mammo_nb.core.errors import cell, shown
from mammo_nb.core.pictures import picture_names, stem_of


def predicted(folder, weights, output, *more):  # noqa: F811
    done = mammo_nb("predict", folder, "-o", output, "--weights", weights, "--workers", 1, *more)
    images, breasts = (pd.read_csv(output / f"per_{kind}.csv", dtype={"patient_id": str, "image_id": str},
                                   keep_default_na=False) for kind in ("image", "breast"))
    return done, images, breasts


def test_files_of_any_name_have_a_row_and_a_preview_of_their_own(weights, tmp_path):  # noqa: F811
    names = ["1.2.840.7.1", "1.2.840.7.2", "a", "a.dcm", "a.DCM", "p/1.dcm", "p@1.dcm", "x" * 250,
             "line\nbreak.dcm", "comma,\"quote\".dcm", os.fsdecode(b"Gon\xe7alves.dcm"), "=1+1.dcm"]
    for name in names:
        save(dataset(), tmp_path / "in" / name)
    done, images, _ = predicted(tmp_path / "in", weights, tmp_path / "out")
    assert done.returncode == 0 and len(images) == len(names) and images["probability"].ne("").all()
    assert len(list((tmp_path / "out/previews").glob("*.png"))) == len(names)
    assert images["probability"].nunique() == 1
    assert "'=1+1.dcm" in set(images["file"]) and "line\\nbreak.dcm" in set(images["file"])


def test_linked_folders_are_followed_once(tmp_path):
    save(dataset(), tmp_path / "elsewhere/x.dcm")
    save(dataset(), tmp_path / "in/real/y.dcm")
    (tmp_path / "in/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in/again").symlink_to(tmp_path / "in/real")
    (tmp_path / "in/real/loop").symlink_to(tmp_path / "in")
    (tmp_path / "in/broken.dcm").symlink_to(tmp_path / "nothing.dcm")
    assert find_files(tmp_path / "in") == (["broken.dcm", "linked/x.dcm", "real/y.dcm"], 0)


def test_exams_instances_and_patients_without_an_id(weights, tmp_path):  # noqa: F811
    one = dataset(patient="A", StudyDate="20190101", StudyInstanceUID="1.2.1")
    save(one, tmp_path / "in/1.dcm")
    save(one, tmp_path / "in/copy.dcm")
    save(dataset(patient="A", view="MLO", StudyDate="20190101", StudyInstanceUID="1.2.1"), tmp_path / "in/2.dcm")
    save(dataset(patient="A", StudyDate="20220101", StudyInstanceUID="1.2.2"), tmp_path / "in/3.dcm")
    for k in range(3):
        save(dataset(patient="", StudyInstanceUID=f"1.2.3.{k}"), tmp_path / f"in/none{k}.dcm")
    save(dataset(patient="", StudyInstanceUID=None), tmp_path / "in/woman/x.dcm")
    save(dataset(patient="NA"), tmp_path / "in/na.dcm")
    done, images, breasts = predicted(tmp_path / "in", weights, tmp_path / "out")
    assert done.returncode == 0
    notes = images.set_index("file")["note"]
    assert notes["copy.dcm"].startswith("the same SOP instance as 1.dcm") and "same" not in notes["1.dcm"]
    rows = [(r.patient_id, r.images, r.note.split("; ")[0]) for r in breasts.itertuples() if r.patient_id == "A"]
    assert rows == [("A", 2, "study 1 of 2"), ("A", 1, "study 2 of 2")]
    assert breasts["patient_id"].tolist() == ["A", "A", "NA", "1.2.3.0", "1.2.3.1", "1.2.3.2", "woman"]


def test_sides_of_a_table_in_other_spellings(weights, tmp_path):  # noqa: F811
    for name in ("1.2.840.7.1", "1.2.840.7.2", "c.dcm"):
        save(dataset(ImageLaterality=None, ViewPosition=None), tmp_path / "in" / name)
    (tmp_path / "t.csv").write_text("image_id,laterality,view\n1.2.840.7.1,left,cranio-caudal\n1.2.840.7.2,,RMLO\n"
                                    "c.dcm,r,CCID\n")
    _, images, _ = predicted(tmp_path / "in", weights, tmp_path / "out", "--table", tmp_path / "t.csv")
    assert images[["laterality", "view"]].values.tolist() == [["L", "CC"], ["R", "MLO"], ["R", "CC"]]


@pytest.mark.parametrize("name, stem", [("a/1.2.840.7", "1.2.840.7"), ("1.2.3.dcm", "1.2.3"), ("b.DCM", "b"),
                                        (".dcm", ".dcm"), ("x.png", "x")])
def test_only_known_endings_are_removed(name, stem):
    assert stem_of(name) == stem


def test_names_are_different_printable_and_short():
    files = ["a", "A.dcm", "a.dcm", "p/1.dcm", "p@1.dcm", "é" * 120, "\udce7.dcm", "b/é\n.dcm"]
    names = picture_names(files)
    assert len({n.lower() for n in names}) == len(files) and max(len(n.encode()) for n in names) <= 120
    assert all(n.isprintable() for n in names) and shown("\udce7") == "\\udce7" and cell("-1") == "'-1"


def test_crops_of_files_named_after_uids_and_by_bytes_that_are_no_text(tmp_path):
    for name in ("1.2.840.7.1", "1.2.840.7.2", os.fsdecode(b"Gon\xe7alves.dcm")):
        save(dataset(), tmp_path / "in" / name)
    done, crops = cropped(tmp_path / "in", tmp_path / "crops")
    assert done.returncode == 0 and list(crops.index) == ["1.2.840.7.1", "1.2.840.7.2", "Gon\\udce7alves.dcm"]
    (tmp_path / "png").mkdir()
    for name in (b"1.2.840.7.1.png", b"1.2.840.7.2.png", b"Gon\xe7alves.png"):
        write_png(tmp_path / "x.png", (breast() // 16).astype("uint8"))
        (tmp_path / "x.png").rename(tmp_path / "png" / os.fsdecode(name))
    done, _ = cropped(tmp_path / "png", tmp_path / "out")
    assert done.returncode == 0 and sorted(p.name for p in (tmp_path / "out/cleaned_images").glob("*.png")) == [
        "unknown@1.2.840.7.1.png", "unknown@1.2.840.7.2.png", "unknown@Gon%E7alves.png"]


def test_packed_files_are_named_by_every_command(weights, tmp_path):  # noqa: F811
    save(dataset(), tmp_path / "in/a.dcm")
    for name in ("b.dcm.gz", "study.ZIP"):
        (tmp_path / "in" / name).write_bytes(b"packed")
    for command in (("predict", "-o", tmp_path / "p", "--weights", weights), ("check",),
                    ("crops", "-o", tmp_path / "c", "--detector", "otsu")):
        done = mammo_nb(command[0], tmp_path / "in", *command[1:], "--workers", 1)
        assert done.returncode == 0 and "2 packed files left out, unpack them first: b.dcm.gz, study.ZIP" in done.stdout


def cropped(folder, output):
    done = mammo_nb("crops", folder, "-o", output, "--detector", "otsu", "--workers", 1)
    table = pd.read_csv(output / "crops.csv", dtype={"patient_id": str, "image_id": str}, keep_default_na=False)
    return done, table.set_index("file")


def test_crops_and_predict_use_the_same_ids(weights, tmp_path):  # noqa: F811
    save(dataset(patient="10008"), tmp_path / "in/test_images/10008/1.dcm")
    save(dataset(patient="", StudyInstanceUID="1.2.3.9"), tmp_path / "in/test_images/b/2.dcm")
    save(dataset(patient="in the header"), tmp_path / "in/test_images/x/3.dcm")
    (tmp_path / "in/test.csv").write_text("patient_id,image_id,laterality,view\nx,3,L,CC\n")
    _, images, _ = predicted(tmp_path / "in", weights, tmp_path / "out")
    done, crops = cropped(tmp_path / "in", tmp_path / "crops")
    ids = ["patient_id", "image_id"]
    assert done.returncode == 0 and crops[ids].equals(images.set_index("file")[ids])
    assert crops["patient_id"].tolist() == ["10008", "1.2.3.9", "x"] and crops["image_id"].iloc[2] == "3"
    assert all((tmp_path / f"crops/cleaned_images/{r.patient_id}@{r.image_id}.png").exists()
               for r in crops.itertuples())


def test_files_with_equal_ids_have_crops_of_their_own(tmp_path):
    one = dataset(patient="../A")
    for name in ("a", "a.dcm", "A.dcm", "copy/a.dcm"):
        save(one, tmp_path / "in" / name)
    (tmp_path / "in/broken.dcm").write_bytes(b"no scan")
    done, crops = cropped(tmp_path / "in", tmp_path / "crops")
    assert done.returncode == 1 and (crops["error"] != "").sum() == 1 and crops["picture"].nunique() == 5
    assert len(list((tmp_path / "crops/cleaned_images").glob("%2E.%2FA@*.png"))) == 4
    assert crops.loc["broken.dcm", ["patient_id", "image_id"]].tolist() == ["unknown", "broken"]


def test_formulas_and_control_characters_are_escaped_by_crops_and_check(tmp_path):
    save(dataset(patient="=1+1"), tmp_path / "in/=2+2.dcm")
    save(dataset(patient="-3"), tmp_path / "in/line\nbreak.dcm")
    (tmp_path / "in/\x1b[31m.dcm").write_bytes(b"no scan")
    done, crops = cropped(tmp_path / "in", tmp_path / "crops")
    made = {p.name for p in (tmp_path / "crops/cleaned_images").glob("*.png")}
    assert set(crops.loc[crops["error"] == "", "picture"]) == made and not any(p[0] in "=+-@" for p in made)
    assert set(crops.index) == {"'=2+2.dcm", "line\\nbreak.dcm", "\\x1b[31m.dcm"}
    assert set(crops["patient_id"]) == {"'=1+1", "'-3", "unknown"} and "\x1b[31m" not in done.stdout
    done = mammo_nb("check", tmp_path / "in", "-o", tmp_path / "check.csv", "--workers", 1)
    assert set(pd.read_csv(tmp_path / "check.csv")["file"]) == set(crops.index) and "\x1b[31m" not in done.stdout
