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
# # Watching
# > A folder into which exams arrive: each is predicted once, when it is complete, and a killed watch continues.
#
# A mammography unit or a CT scanner sends its images one by one, over minutes. Nothing says which one is the last. So
# an exam counts as complete when none of its files was added, changed or removed for some time. An exam is the DICOM
# files with one Study Instance UID; files without one belong together if they lie in one folder.
#
# The folder is the queue. Nothing is kept besides it but `exam.json` of each finished exam, which is written last. A
# watch that was killed so finds what is left by looking at both.

# %%
#| default_exp watching

# %%
#| export
import time
from collections import defaultdict
from pathlib import Path

from mammo_nb.core.files import owner, read_json, short_hash, state_of, walk, write_json

# %%
#| hide
import tempfile
from copy import deepcopy

from pydicom import examples

# %% tags=["parameters"]
wait = 30.0   # seconds without a new file after which the exam of the example is complete

# %%
#| hide
def make_dicom(path, shade=0, **tags):
    "An example of pydicom with other tags."
    ds = deepcopy(examples.ct)
    for name, value in tags.items():
        setattr(ds, name, value)
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.PixelData = bytes([shade]) + ds.PixelData[1:]
    ds.save_as(path)
    return path

# %% [markdown]
# ## Complete exams
# A look at the folder asks the file system for sizes and times. Only a file that is new or has changed is opened, for
# the UID of its study. Hidden files and folders are left out: programs write there before they rename.

# %%
#| export
def exam_name(
    study: str,   # Study Instance UID
) -> str:         # 12 hexadecimal digits
    "The name of an exam in folders and files, which says nothing about the patient."
    return short_hash(f"study {study}")

def study_of(
    path: Path,   # DICOM file
) -> str:         # "" if the file has none or cannot be read
    "The Study Instance UID of a file."
    from pydicom import dcmread
    try:
        header = dcmread(path, stop_before_pixels=True, force=True, specific_tags=["StudyInstanceUID"])
        return str(header.get("StudyInstanceUID") or "")
    except Exception:   # a damaged file, for which pydicom has no class of its own; the prediction names the reason
        return ""

class Arrivals:
    "The DICOM files of a folder that grows."
    def __init__(self,
        folder: Path,
        besides: Path,   # a folder in it that is left out: that of the output
        wait: float,     # seconds without a change after which an exam is complete
    ):
        self.folder, self.besides, self.wait = Path(folder).resolve(), Path(besides).resolve(), wait
        self.known = {}     # file -> size and time, and its exam; "" for what is no DICOM file
        self.changed = {}   # exam -> when its last change was seen

    def _exam_of(self, path: Path) -> str:
        from mammo_nb.core.dicom import kind_of
        if kind_of(path) != "scan":
            return ""
        study = study_of(path)
        return exam_name(study) if study else short_hash(f"folder {path.parent.relative_to(self.folder)}")

    def look(self,
        now: float,               # seconds of a clock that is never set back
    ) -> dict[str, dict]:         # exam -> its files, each with size and time
        "The exams that are complete."
        found = {}
        for path in walk(self.folder):
            file = path.relative_to(self.folder)
            if any(part.startswith(".") for part in file.parts) or self.besides in path.parents:
                continue
            try:
                state = tuple(state_of(path)[:2])
            except OSError:   # it has vanished since it was listed
                continue
            before = self.known.get(file.as_posix())
            if before and before[0] == state:
                found[file.as_posix()] = before
                continue
            found[file.as_posix()] = state, self._exam_of(path)
        for file in found.keys() | self.known.keys():
            states = found.get(file), self.known.get(file)
            if states[0] != states[1]:
                self.changed |= {exam: now for _, exam in filter(None, states)}
        self.known, exams = found, defaultdict(dict)
        for file, (state, exam) in sorted(found.items()):
            if exam and now - self.changed[exam] >= self.wait:
                exams[exam][file] = state
        return exams

# %%
box = Path(tempfile.mkdtemp())
made = make_dicom(box / "a.dcm", StudyInstanceUID="1.2.3")
arrivals = Arrivals(box, box / "out", wait)
assert arrivals.look(0) == {} and list(arrivals.look(wait)) == [exam_name("1.2.3")]
make_dicom(box / "b.dcm", StudyInstanceUID="1.2.3")
assert arrivals.look(wait + 1) == {}   # complete no more
{exam: list(files) for exam, files in arrivals.look(2 * wait + 1).items()}

# %% [markdown]
# ## One exam
# A process of its own predicts an exam, so that a crash in a codec does not end the watch; networks stay open in it. It
# sees the files of the exam as links in a folder. What libraries print there may hold text of a header, so it is not
# shown.

# %%
#| export
def predict_exam(
    item: dict,   # folder, files, output, system, options of `predict_scans`
) -> dict:        # the record
    "Predict an exam. An error of one exam is its record; a full disk ends the watch."
    import os
    import shutil
    import warnings
    from contextlib import redirect_stderr, redirect_stdout
    from mammo_nb.core.files import StorageError
    from mammo_nb.predicting import NOTHING, predict_scans
    output = Path(item["output"])
    links = output / ".files"
    shutil.rmtree(links, ignore_errors=True)
    for file in item["files"]:
        (links / file).parent.mkdir(parents=True, exist_ok=True)
        (links / file).symlink_to(Path(item["folder"]) / file)
    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            warnings.simplefilter("ignore")
            result = predict_scans(links, output, item["system"], workers=1, **item["options"])
    except StorageError:
        raise
    except Exception as e:
        return {"exit_code": NOTHING, "failure": type(e).__name__, "seconds": 0}
    finally:
        shutil.rmtree(links, ignore_errors=True)
    if "exams" in result.attrs:
        write_json(output / "result.json", [{k: v for k, v in exam.items() if k != "patient_id"}
                                            for exam in result.attrs["exams"]])
    return result.attrs["record"]

LOST = {"exit_code": 2, "failure": "WorkerLost", "seconds": 0}   # of an exam that ended its process twice

# %% [markdown]
# ## All exams
# An exam whose files change after its prediction is predicted again, with all of its files. One that failed is tried
# again only then, or when its `exam.json` is removed.

# %%
#| export
LOOK = 2.0   # seconds between two looks at the folder, at most

def _digest(files: dict) -> str:
    "Digest of names, sizes and times of the files of an exam."
    return short_hash(repr(sorted(files.items())))

def finished(
    folder: Path,   # of one exam
) -> dict:          # exam.json; {} if there is none
    "The record of an exam."
    try:
        return read_json(Path(folder) / "exam.json")
    except (OSError, ValueError):
        return {}

def in_words(exam: str, record: dict) -> str:
    "One line about a finished exam."
    counts = record.get("counts", {})
    words = [f"{counts[name]} {name.replace('_', ' ')}" for name in counts if counts[name]]
    return f"{exam}: {record['failure'] or ', '.join(words)}, {record['seconds']:.1f} s"

def watch(
    folder: Path,          # exams arrive here
    output: Path,          # gets a folder for each exam
    system: str = "",      # "": the default
    wait: float = 60.0,    # seconds without a change after which an exam is complete
    workers: int = 1,      # exams that are predicted at once
    until=lambda: False,   # () -> whether to end
    tell=lambda line, record: print(line),   # gets a line and the record of each exam
    **options,             # of `predict_scans`, besides report and workers
):
    "Predict each exam of a folder once. Raises StorageError if the disk is full or another watch has the output."
    from queue import Empty
    from mammo_nb.core.processes import Processes
    folder, output = Path(folder).resolve(), Path(output).resolve()
    arrivals, done, busy = Arrivals(folder, output, wait), {}, {}
    with owner(output), Processes(predict_exam, workers, LOST, idle=600) as processes:
        while not until():
            for exam, files in arrivals.look(time.monotonic()).items():
                digest = _digest(files)
                if exam not in done:
                    done[exam] = finished(output / exam).get("digest")
                if exam in busy or done[exam] == digest:
                    continue
                busy[exam] = digest, len(files)
                processes.start(exam, {"folder": str(folder), "files": list(files), "output": str(output / exam),
                                       "system": system, "options": options})
            try:
                found = processes.take(processes.events.get(timeout=min(LOOK, max(wait / 4, 0.05))))
            except Empty:
                continue
            for exam, record in found:
                done[exam], count = busy.pop(exam)
                write_json(output / exam / "exam.json", {**record, "files": count, "digest": done[exam]})
                tell(in_words(exam, record), record)

# %% [markdown]
# ## What came out
# A file that is no mammogram is an exam as well, and its record says so. The watch ends after it.

# %%
lines = []
watch(box, box / "out", wait=0, until=lambda: bool(lines), tell=lambda line, _: lines.append(line),
      weights=box / "none")
assert finished(box / "out" / exam_name("1.2.3"))["failure"] == "MissingWeights"
lines

# %% [markdown]
# ---
# [← Predicting](81_predicting.py) · [Receiving →](83_receiving.py)
