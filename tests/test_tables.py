"Tables of sides as spreadsheets write them are matched with their files."
import numpy as np
import pandas as pd
import pytest
from odd import dataset, save
from test_predict import mammo_nb, weights  # noqa: F401  (a fixture)

from mammo_nb.mammo.reading import sides
from mammo_nb.mammo.reading.labels import DatasetError
from mammo_nb.mammo.reading.sides import _pairs, match_rows, parts_of_path, plain_id
from mammo_nb.mammo.tools.crops import crop_folder, print_crops

HEADER = ["file", "patient_id", "laterality", "view"]


def table(path, rows, header=HEADER, separator=",", encoding="utf-8"):
    path.write_bytes("".join(separator.join(r) + "\r\n" for r in [header, *rows]).encode(encoding))
    return path


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "latin-1", "cp1252"])
def test_encodings_and_separators(tmp_path, encoding, separator):
    path = table(tmp_path / "t.csv", [["José.dcm", "NA", "L", "CC"], ["b.dcm", "Zoë", "", "MLO"]], HEADER, separator,
                 encoding)
    found, lost, rows = match_rows(path, ["José.dcm", "b.dcm"])
    assert (lost, rows) == (0, 2) and found["José.dcm"]["patient_id"] == "NA"
    assert found["b.dcm"] == {"patient_id": "Zoë", "view": "MLO"}


@pytest.mark.parametrize("named, file", [
    ("7", "007.dcm"), ("7.0", "007.dcm"), ("7.0", "7.dcm"), ("007.dcm", "007"), ("007", "007.DCM"), ("0", "000.dcm"),
    (r"D:\scans\a\1.DCM", "a/1.dcm"), (r"a\1", "a/1.dcm"), ("a/1.dcm", r"a\1.dcm"), ("'=1+1.dcm", "=1+1.dcm"),
    ("1.2.840.7", "x/1.2.840.7")])
def test_names_that_a_spreadsheet_changed(tmp_path, named, file):
    found, lost, _ = match_rows(table(tmp_path / "t.csv", [[named, "p", "R", "CC"]]), [file, "other.dcm"])
    assert list(found) == [file] and lost == 0


@pytest.mark.parametrize("named, files", [
    ("1.2.840.7.0", ["1.2.840.7"]), ("7", ["007.dcm", "07.dcm"]), ("70", ["7.dcm"]), ("", ["7.dcm"])])
def test_another_name_is_no_match(tmp_path, named, files):
    assert match_rows(table(tmp_path / "t.csv", [[named, "p", "R", "CC"]]), files) == ({}, 1, 1)


def test_a_row_belongs_to_the_file_that_agrees_best(tmp_path):
    files = ["a/1.dcm", "b/1.dcm", "c/1.dcm", "2.dcm", "002.dcm"]
    path = table(tmp_path / "t.csv", [["a/1.dcm", "A", "L", "CC"], ["b/1.dcm", "B", "R", "CC"], ["2", "C", "L", "CC"]])
    assert {f: r["patient_id"] for f, r in match_rows(path, files)[0].items()} == {
        "a/1.dcm": "A", "b/1.dcm": "B", "2.dcm": "C"}
    path = table(tmp_path / "t.csv", [["a", "1", "L", "CC"], ["b", "1", "R", "CC"]],
                 ["patient_id", "image_id", "laterality", "view"])
    assert {f: r["laterality"] for f, r in match_rows(path, files)[0].items()} == {"a/1.dcm": "L", "b/1.dcm": "R"}


def test_an_id_is_that_of_the_file_and_a_patient_loses_what_a_spreadsheet_added(tmp_path):
    path = table(tmp_path / "t.csv", [["5.0", "7.0", "L", "CC"], ["", "8.0", "R", "CC"]],
                 ["patient_id", "image_id", "laterality", "view"])
    found, _, _ = match_rows(path, ["007.dcm", "008.dcm"])
    assert found["007.dcm"] == {"patient_id": "5", "image_id": "007", "laterality": "L", "view": "CC"}
    assert found["008.dcm"] == {"image_id": "008", "laterality": "R", "view": "CC"}


def test_rows_for_one_file_agree_or_are_refused(tmp_path):
    same = [["a.dcm", "p", "left", "CC"], ["a", "p", "L", ""]]
    assert match_rows(table(tmp_path / "t.csv", same), ["a.dcm"])[0]["a.dcm"]["view"] == "CC"
    for other, column in ((["a", "p", "R", "CC"], "laterality"), (["a", "q", "L", "CC"], "patient_id"),
                          (["a", "p", "L", "MLO"], "view")):
        with pytest.raises(DatasetError, match=f"several rows for a.dcm, and their {column} differs"):
            match_rows(table(tmp_path / "t.csv", [same[0], other]), ["a.dcm"])


def test_predict_tells_rows_without_a_file_and_keeps_a_patient_called_na(weights, tmp_path):  # noqa: F811
    for name in ("007.dcm", "b.dcm"):
        save(dataset(ImageLaterality=None, ViewPosition=None), tmp_path / "in" / name)
    path = table(tmp_path / "t.csv", [["7", "NA", "l", "cc"], [r"C:\x\b.dcm", "NA", "R", "CC"], ["c", "q", "L", "CC"]],
                 HEADER, ";", "utf-16")
    done = mammo_nb("predict", tmp_path / "in", "-o", tmp_path / "out", "--weights", weights, "--workers", 1,
                    "--table", path)
    assert done.returncode == 0 and "1 of 3 rows of t.csv match no file" in done.stdout
    breasts = pd.read_csv(tmp_path / "out/per_breast.csv", keep_default_na=False)
    assert breasts[["patient_id", "laterality"]].values.tolist() == [["NA", "L"], ["NA", "R"]]


def test_what_a_table_says_of_side_and_view_is_checked(weights, tmp_path):  # noqa: F811
    for name in "abcd":
        save(dataset(ImageLaterality=None, ViewPosition=None), tmp_path / "in" / f"{name}.dcm")
    path = table(tmp_path / "t.csv", [["a", "p", "L", "CC"], ["b", "p", "Q", "unknown"], ["c", "p", "R", "oblique"],
                                      ["d", "p", "R", "CCID"]])
    done = mammo_nb("predict", tmp_path / "in", "-o", tmp_path / "out", "--weights", weights, "--workers", 1,
                    "--table", path)
    assert done.returncode == 0, done.stderr
    assert "the laterality of 1 of 4 files is neither left nor right in t.csv" in done.stdout
    rows = pd.read_csv(tmp_path / "out/per_image.csv").set_index("file")
    assert rows["probability"].notna().tolist() == [True, True, False, False]
    assert rows.at["c.dcm", "note"].startswith("no standard mammogram: view OBLIQUE")
    assert rows.at["d.dcm", "note"].startswith("no standard mammogram: implant displaced")


def test_crops_names_what_is_no_mammogram(tmp_path, capsys):
    save(dataset(), tmp_path / "in/a.dcm")
    save(dataset(SOPClassUID="1.2.840.10008.5.1.4.1.1.2", Modality="CT"), tmp_path / "in/b.dcm")
    found = crop_folder(tmp_path / "in", tmp_path / "out", workers=1)
    assert print_crops(found, tmp_path / "out") == 0
    assert "1 cropped: no standard mammogram: CT slice\n2 of 2 files cropped" in capsys.readouterr().out
    assert found.set_index("file")["note"].str.contains("no standard").to_dict() == {"a.dcm": False, "b.dcm": True}


def compared_one_by_one(wanted, files):
    "The rule of `_pairs`, with each row against each file."
    parts = [parts_of_path(f) for f in files]

    def agreement(row, file):
        if not row or not file or plain_id(row[-1]) != plain_id(file[-1]):
            return None
        same = [plain_id(a) == plain_id(b) for a, b in zip(reversed(row), reversed(file))]
        return row[-1] == file[-1], (same + [False]).index(False)

    scores = {(r, f): s for r, row in enumerate(wanted) for f, file in enumerate(parts) if (s := agreement(row, file))}
    best = lambda k, own: max(score for pair, score in scores.items() if pair[k] == own)
    pairs = [(r, f) for (r, f), s in scores.items() if s == best(0, r) == best(1, f)]
    stems = {r: {parts[f][-1] for q, f in pairs if q == r} for r, _ in pairs}
    found = {f: [r for r, g in pairs if g == f and len(stems[r]) == 1] for _, f in pairs}
    return {f: rows for f, rows in found.items() if rows}


def test_rows_and_files_are_paired_as_if_each_was_compared_with_each():
    rng = np.random.default_rng(0)
    for _ in range(300):
        def name():
            return "/".join(rng.choice(["1", "01", "a", "A", "7.0", "007"], rng.integers(1, 4)))
        files = sorted({name() for _ in range(rng.integers(1, 9))})
        wanted = [parts_of_path(name()) if rng.random() < .9 else () for _ in range(rng.integers(1, 9))]
        assert _pairs(wanted, files) == compared_one_by_one(wanted, files), (wanted, files)


def test_files_of_one_name_cost_no_comparison_of_each_with_each(monkeypatch):
    "As in CBIS-DDSM of the Cancer Imaging Archive, where each file is 1-1.dcm."
    calls = []
    monkeypatch.setattr(sides, "plain_id", lambda name: calls.append(name) or plain_id(name))
    files = [f"p{k}/{k}/1-1.dcm" for k in range(400)]
    assert _pairs([parts_of_path(f) for f in files], files) == {k: [k] for k in range(400)}
    assert len(calls) <= 10 * 3 * 400
