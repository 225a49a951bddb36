# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Kernels
# > What goes to Kaggle is looked at before it goes, followed until it is there, and its log comes back when it fails.
#
# Kaggle calls a notebook a kernel and takes it with a file of metadata beside it. Much of what can be wrong with that
# file is accepted without a word and found out hours later: a title that makes another address than the one that is
# named, a folder that the client leaves out, an upload that failed. So it is read here with the rules of the other
# side, and each complaint says what to write instead.

# %%
#| default_exp core.kernels

# %%
#| export
import json
import re
import shutil
import time
from collections.abc import Iterable
from contextlib import contextmanager
from pathlib import Path

import jupytext
import nbformat

from mammo_nb.core.files import read_json, sha256, write_json, write_text
from mammo_nb.core.kaggle import CREDENTIALS
from mammo_nb.core.notebooks import from_percent
from mammo_nb.core.stages import parameter_names

# %%
#| hide
import tempfile

from mammo_nb.core.settings import find_settings

# %% tags=["parameters"]
user = "somebody"   # whose the data sets and kernels shown below are

# %%
#| export
class KernelError(Exception):
    "What Kaggle would not take, or did not finish, and what to do."

# %% [markdown]
# ## Metadata
# The committed files name no user: `{user}` stands for whoever pushes. A kernel's notebook is written as text, so it is
# built on the way.

# %%
#| export
DATASET, KERNEL = "dataset-metadata.json", "kernel-metadata.json"

def prepare(
    source: Path,   # a folder of kaggle/, with metadata and for a kernel its notebook in percent format
    target: Path,   # the folder that is sent
    user: str,      # at Kaggle
) -> Path:          # target
    "Metadata with the user's name, and the notebook built."
    target.mkdir(parents=True, exist_ok=True)
    name = next((n for n in (DATASET, KERNEL) if (source / n).is_file()), None)
    if name is None:
        raise KernelError(f"{source} has neither {DATASET} nor {KERNEL}: name a folder of kaggle/.")
    write_text(target / name, (source / name).read_text(encoding="utf-8").replace("{user}", user))
    if name == KERNEL:
        code = Path(_read(target / name)["code_file"])
        write_text(target / code,
                   nbformat.writes(from_percent((source / code.with_suffix(".py")).read_text(encoding="utf-8"))))
    return target

def _read(path: Path) -> dict:
    try:
        content = read_json(path)
    except ValueError as e:
        raise KernelError(f"{path} is no JSON ({e}): correct it.") from None
    if not isinstance(content, dict):
        raise KernelError(f"{path} must hold one object in braces.")
    return content

# %% [markdown]
# ## What Kaggle takes
# Lengths are those that its client checks, or its server where the client does not; the numbers of bytes and files are
# the smallest that its documents and users have reported, since Kaggle changes them.

# %%
#| export
MOST_BYTES, MOST_FILES, MOST_CODE = 100e9, 1000, 1_000_000   # of a data set, in a data set, of a notebook
SHAPES = ("NvidiaTeslaT4", "")                                # two T4, or no accelerator
SCANS = (".dcm", ".dicom", ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".nii", ".gz", ".zip", ".csv")

def slugify(
    title: str,
) -> str:       # what Kaggle makes of it in an address
    "Small letters, digits, hyphens between."
    return re.sub("[^a-z0-9]+", "-", title.lower()).strip("-")

def _bare(source) -> bool:
    return isinstance(source, str) and bool(re.fullmatch(r"[A-Za-z0-9_-]+/[a-z0-9]+(-[a-z0-9]+)*", source))

def _names(about: dict, what: str, shortest: int) -> list[str]:
    "Complaints about id and title."
    ref, title = about.get("id", ""), about.get("title", "")
    if "{user}" in str(ref):
        return [f"id is {ref!r}: the user's name is filled in by make kaggle-push; send the folder that it writes."]
    if not _bare(ref):
        return [
            f"id is {ref!r}: it must be user/slug, the slug of small letters, digits and single hyphens, without "
            "address or version."
        ]
    slug, said = ref.partition("/")[2], []
    for name, text in (("title", title), ("slug", slug)):
        if not shortest <= len(text) <= 50:
            said.append(f"{name} {text!r} of the {what} has {len(text)} characters: give it {shortest} to 50.")
    if slugify(title) != slug:
        said.append(
            f"title {title!r} makes the address {slugify(title)!r}, the id says {slug!r}: Kaggle would make another "
            f"{what} than the one that is named. Write the title {slug.replace('-', ' ')!r}, or the id "
            f"{ref.partition('/')[0]}/{slugify(title)}."
        )
    return said

def _dataset(folder: Path, about: dict) -> list[str]:
    said, files = _names(about, "data set", 6), [p for p in sorted(folder.iterdir()) if p.name != DATASET]
    licences = about.get("licenses")
    if not (isinstance(licences, list) and len(licences) == 1 and licences[0].get("name")):
        said.append('licenses must name one: "licenses": [{"name": "other"}].')
    if (subtitle := about.get("subtitle")) and not 20 <= len(subtitle) <= 80:
        said.append(f"subtitle has {len(subtitle)} characters: give it 20 to 80, or leave it out.")
    said += [
        f"{p.name}/ is a folder, which the client leaves out without a word: put its files beside {DATASET}."
        for p in files if p.is_dir()
    ]
    said += [
        f"{p.name} looks like patients' data (a scan, a picture, an archive or a table): nothing of the kind leaves "
        "this machine. Remove it."
        for p in files if p.is_file() and _is_scan(p)
    ]
    said += [
        f"{p.name} is empty, and Kaggle refuses empty files: make it again." for p in files
        if p.is_file() and not p.stat().st_size
    ]
    said += [
        f"resources names {r.get('path')!r}, which is not in the folder: make it, or take it out."
        for r in about.get("resources", []) if not (folder / str(r.get("path"))).is_file()
    ]
    size = sum(p.stat().st_size for p in files if p.is_file())
    if not files:
        said.append(f"{folder} holds nothing but {DATASET}: run make kaggle-wheels or make kaggle-weights first.")
    if len(files) > MOST_FILES:
        said.append(f"{len(files)} files: Kaggle takes {MOST_FILES}. Leave out what predicting does not need.")
    if size > MOST_BYTES:
        said.append(
            f"{size / 1e9:.1f} GB: Kaggle takes {MOST_BYTES / 1e9:.0f}. Leave out what predicting does not need.")
    return said

def _is_scan(path: Path) -> bool:
    with open(path, "rb") as file:
        return path.suffix.lower() in SCANS or file.read(132)[128:] == b"DICM"

def _kernel(folder: Path, about: dict) -> list[str]:
    said, code = _names(about, "kernel", 5), folder / str(about.get("code_file", ""))
    if not code.is_file():
        said.append(
            f"code_file is {about.get('code_file')!r}, which is not in the folder: send the folder that make "
            "kaggle-push writes."
        )
    elif code.stat().st_size > MOST_CODE:
        said.append(f"{code.name} has {code.stat().st_size / 1e6:.1f} MB: Kaggle takes 1 MB. Clear its outputs.")
    else:
        try:
            nbformat.validate(nbformat.read(code, as_version=4))
        except Exception as e:
            # nbformat raises what its parts raise
            said.append(f"{code.name} is no notebook ({type(e).__name__}): build it again.")
    for key, wanted in (("language", "python"), ("kernel_type", "notebook")):
        if about.get(key) != wanted:
            said.append(f"{key} is {about.get(key)!r}: write {wanted!r}.")
    for key in ("is_private", "enable_gpu", "enable_internet"):
        if not isinstance(about.get(key), bool):
            said.append(
                f"{key} is {about.get(key)!r}: write true or false, without quotes; the client takes its own default "
                "for what it does not know."
            )
    shape = about.get("machine_shape", "")
    if shape not in SHAPES:
        said.append(
            f"machine_shape is {shape!r}: write \"NvidiaTeslaT4\" for two T4; the P100 does not run with today's image."
        )
    said += [
        f"dataset_sources has {s!r}: write user/slug, without address or version."
        for s in about.get("dataset_sources", []) if not _bare(s)
    ]
    said += [
        f"kernel_sources has {s!r}: write user/slug, without address or version."
        for s in about.get("kernel_sources", []) if not _bare(s)
    ]
    said += [
        f"competition_sources has {s!r}: write the competition's name in its address, nothing before it."
        for s in about.get("competition_sources", []) if slugify(s) != s
    ]
    return said

def metadata_problems(
    folder: Path,   # as it would be sent
) -> list[str]:     # a sentence each; empty if Kaggle would take it
    "What is wrong with a data set or kernel, and what to write instead."
    folder = Path(folder)
    for name, judge in ((DATASET, _dataset), (KERNEL, _kernel)):
        if (folder / name).is_file():
            return judge(folder, _read(folder / name))
    return [f"{folder} has neither {DATASET} nor {KERNEL}."]

def check_metadata(
    *folders: Path,
):
    "Refuse to send anything if anything is wrong."
    problems = [f"{Path(f).name}: {p}" for f in folders for p in metadata_problems(f)]
    if problems:
        raise KernelError("\n".join(problems))

# %%
root, outbox = find_settings().parent, Path(tempfile.mkdtemp())
submission = prepare(root / "kaggle/submission", outbox / "submission", user)
assert metadata_problems(submission) == []
about = read_json(submission / KERNEL)
assert about["enable_internet"] is False and about["machine_shape"] == "NvidiaTeslaT4"   # two T4, and no network
write_json(
    submission / KERNEL, {
        **about, "title": "My submission",
        "dataset_sources": ["https://www.kaggle.com/datasets/somebody/mammo-nb-wheels"], "enable_gpu": "yes"
    })
print(*metadata_problems(submission), sep="\n")
assert len(metadata_problems(submission)) == 3

# %% [markdown]
# ## Weights
# What predicting reads, and what proves that it is what was trained: graphs and engines with their sidecars, the
# networks themselves, and a manifest of digests. Pickles and tables stay at home.

# %%
#| export
CARRIED = (".onnx", ".engine", ".safetensors", ".json")

def gather_weights(
    weights: Path,   # a folder with ensemble.onnx, such as runs/demo/weights
    folder: Path,    # made anew
) -> dict:           # name -> bytes and sha256: manifest.json
    "The files of a data set of weights."
    weights, folder = Path(weights), Path(folder)
    files = sorted(
        p for p in weights.iterdir()
        if p.is_file() and p.suffix in CARRIED and not p.name.startswith(".") and p.name not in ("manifest.json",
                                                                                                 DATASET))
    found = {p.name: {"bytes": p.stat().st_size, "sha256": sha256(p)} for p in files}
    for p in files:
        sidecar = p.with_suffix(".json") if p.suffix == ".onnx" else p.with_name(p.name + ".json")
        if p.suffix in (".onnx", ".engine") and not sidecar.is_file():
            raise KernelError(f"{p} has no {sidecar.name} beside it: export it again.")
        if p.suffix in (".onnx", ".engine") and read_json(sidecar).get("sha256") != found[p.name]["sha256"]:
            raise KernelError(f"{p} is not the file that {sidecar.name} speaks of: export it again.")
    if "ensemble.onnx" not in found:
        raise KernelError(
            f"{weights} has no ensemble.onnx: name the weights of a finished run, such as WEIGHTS=runs/demo/weights.")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for p in files:
        shutil.copy(p, folder)
    write_json(folder / "manifest.json", found)
    return found

# %% [markdown]
# ## A stage as a kernel
# Who trains on Kaggle pushes stages one by one. Such a kernel begins with a cell that installs the package, tells it by
# `MAMMO_NB_*` where its data are mounted, and copies what the kernels before it have written. It may use the internet:
# only a submission may not.

# %%
#| export
_OPENING = '''import os, shutil, subprocess, sys
inputs, work = "/kaggle/input", "/kaggle/working"
{mounts}
wheel = next(mounted("mammo-nb-wheels").glob("mammo_nb-*.whl"))
subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--find-links", str(wheel.parent), f"{{wheel}}[train]"], check=True)
Path(work, "settings.ini").write_text({settings!r})
for kernel in {before!r}: shutil.copytree(mounted(kernel) / "runs", Path(work, "runs"), dirs_exist_ok=True)
for name in {competitions!r}: os.environ["MAMMO_NB_RAW"] = str(mounted(name).parent)
os.environ |= {{"MAMMO_NB_SAMPLES": inputs, "MAMMO_NB_RUNS": str(Path(work, "runs"))}}
os.chdir(work)'''

def kernel_name(
    notebook: Path,  # nbs/<system>/NN_word.py
) -> str:
    "The slug of a stage's kernel."
    return slugify(f"mammo nb {'' if notebook.parent.name == 'mammo' else notebook.parent.name} {notebook.stem}")

def stage_kernel(
    root: Path,                    # the checkout
    notebook: Path,                # nbs/<system>/NN_word.py
    target: Path,                  # the folder to send
    user: str,                     # at Kaggle
    recipe: str = "demo",
    before: Iterable[Path] = (),   # notebooks whose kernels have written what this one reads
    competitions: Iterable[str] = (),  # that it reads, by their names at Kaggle
    gpu: bool = False,             # two T4
) -> Path:                         # target
    "A stage notebook with metadata and an opening of its own."
    root, notebook, before, competitions = Path(root), Path(notebook), [kernel_name(Path(b))
                                                                        for b in before], list(competitions)
    mounts = next(c.source for c in jupytext.reads((root / "kaggle/submission/submission.py").read_text(
        encoding="utf-8"), fmt="py:percent").cells if "mounts" in c.metadata.get("tags", []))
    opening = _OPENING.format(mounts=mounts, settings=(root / "settings.ini").read_text(encoding="utf-8"),
                              before=before, competitions=competitions)
    values = {"run_dir": f"/kaggle/working/runs/{recipe}", "recipe": recipe}
    accepted = parameter_names(notebook)
    if "run_dir" not in accepted:
        raise KernelError(
            f"{notebook} is no stage: it has no run_dir among its parameters. Name one of nbs/*/NN_word.py that "
            "README lists as a stage."
        )
    nb = from_percent(notebook.read_text(encoding="utf-8"))
    at = next(i for i, c in enumerate(nb.cells) if "parameters" in c.metadata.get("tags", []))
    nb.cells.insert(
        at + 1,
        nbformat.v4.new_code_cell("\n".join(f"{k} = {v!r}" for k, v in values.items() if k in accepted), id="chosen"))
    nb.cells.insert(0, nbformat.v4.new_code_cell(opening, id="opening"))
    name = kernel_name(notebook)
    target.mkdir(parents=True, exist_ok=True)
    write_text(target / f"{name}.ipynb", nbformat.writes(nb))
    write_json(
        target / KERNEL, {
            "id": f"{user}/{name}", "title": name.replace("-", " "), "code_file": f"{name}.ipynb", "language": "python",
            "kernel_type": "notebook", "is_private": True, "enable_gpu": gpu, "enable_internet": True,
            **({"machine_shape": "NvidiaTeslaT4"} if gpu else {}), "dataset_sources": [f"{user}/mammo-nb-wheels"],
            "competition_sources": competitions, "kernel_sources": [f"{user}/{b}" for b in before], "model_sources": []
        })
    return target

# %%
kernel = stage_kernel(root, root / "nbs/mammo/05_folds.py", outbox / "folds", user,
                      before=[root / "nbs/mammo/04_crops.py"])
assert metadata_problems(kernel) == [] and read_json(
    kernel / KERNEL)["kernel_sources"] == ["somebody/mammo-nb-04-crops"]
print(nbformat.read(kernel / "mammo-nb-05-folds.ipynb", as_version=4).cells[0].source[:420])

# %% [markdown]
# ## Sending
# Kaggle's own package signs in, uploads and asks. Three of its habits are corrected: a file whose upload fails is left
# out of the data set without an error; a new version says "ready" of the version before it; and refusals come as
# tracebacks.

# %%
#| export
@contextmanager
def _explained(what: str):
    "Refusals as sentences."
    import requests
    try:
        yield
    except requests.HTTPError as e:
        status = e.response.status_code
        raise KernelError({
            401: CREDENTIALS,
            403: f"Kaggle refuses {what}: accept the rules of the competition on its page, verify your phone number "
                 f"at kaggle.com/settings (GPUs need it), and use the credentials of the account that owns {what}.",
            404: f"Kaggle does not know {what}: look whether it is there and yours.",
            429: "Kaggle has had too many questions from this account. Wait some minutes and run again."
        }.get(status,
              f"{what}: {status} {e.response.reason}. Run again; if it stays so, look at kaggle.com.")) from None
    except requests.RequestException as e:
        raise KernelError(f"Kaggle does not answer ({type(e).__name__}). Run again when there is a network.") from None
    except ValueError as e:
        raise KernelError(f"{what}: {e}") from None

def user_of(
    api,      # from `core.kaggle.connect`
) -> str:
    "Whose credentials these are."
    user = api.get_config_value(api.CONFIG_NAME_USER)
    if not user:
        raise KernelError("Kaggle's credentials name no user: set KAGGLE_USERNAME as well.")
    return user

def _version(api, ref: str) -> tuple[int, str]:
    "Number and state of a data set's last version; 0 if there is none."
    import requests
    try:
        said = json.loads(api.dataset_status(ref, format="json(status,current_version_number)"))
    except requests.HTTPError as e:
        if e.response.status_code in (403, 404):
            return 0, ""   # 403: of a private one that does not exist, too
        raise
    return int(said["current_version_number"] or 0), said["status"]

def publish_dataset(
    api,                    # from `core.kaggle.connect`
    folder: Path,           # with dataset-metadata.json
    notes: str,             # on the version
    pause: float = 10.,     # seconds between questions
    patience: float = 3600., # seconds until it must be ready
) -> int:                   # the version
    "Make a private data set or a new version of it, and wait until Kaggle can mount it."
    check_metadata(folder)
    ref, upload = read_json(Path(folder) / DATASET)["id"], api._upload_blob
    def insist(path, *given, **named):
        token = upload(path, *given, **named)
        if not token:
            raise KernelError(
                f"{Path(path).name} did not reach Kaggle, so no version of {ref} was made. Run again: finished "
                "uploads are not repeated."
            )
        return token
    with _explained(ref):
        before, _ = _version(api, ref)
        api._upload_blob = insist
        try:
            answer = api.dataset_create_version(str(folder), notes, quiet=True) if before else api.dataset_create_new(
                str(folder), quiet=True)
        finally:
            api._upload_blob = upload
        if answer.error:
            raise KernelError(f"{ref}: {answer.error}")
        for _ in range(max(1, int(patience / pause))):
            version, state = _version(api, ref)
            if state == "failed":
                raise KernelError(f"Kaggle could not take in {ref}: see https://www.kaggle.com/datasets/{ref}.")
            if version > before and state == "ready":
                print(f"{ref} version {version} is ready", flush=True)
                return version
            time.sleep(pause)
    raise KernelError(
        f"{ref} was sent and is not ready after {patience / 60:.0f} minutes: see "
        f"https://www.kaggle.com/datasets/{ref}, then push the kernel alone with ONLY=kernel."
    )

def _readable(log: str) -> str:
    "Kaggle keeps a log as JSON, an object for each piece of text."
    try:
        return "".join(piece.get("data", "") for piece in json.loads(log))
    except (ValueError, AttributeError):
        return log

def push_kernel(
    api,                        # from `core.kaggle.connect`
    folder: Path,               # with kernel-metadata.json
    pause: float = 30.,         # seconds between questions
    patience: float = 12 * 3600., # seconds until it must have ended
    shown: int = 60,            # lines of the log, if it fails
) -> str:                       # its address
    "Push a kernel and wait until it has run; its log and an error if it fails."
    check_metadata(folder)
    ref, last = read_json(Path(folder) / KERNEL)["id"], ""
    with _explained(ref):
        answer = api.kernels_push(str(folder))
        if answer.error:
            raise KernelError(f"{ref}: {answer.error}")
        unknown = [*answer.invalid_dataset_sources, *answer.invalid_competition_sources, *answer.invalid_kernel_sources]
        if unknown:
            raise KernelError(
                f"{ref} was pushed without {', '.join(unknown)}, which Kaggle does not know or does not show to this "
                "account: push data sets first, and accept the competition's rules."
            )
        print(f"{ref} version {answer.version_number}: {answer.url}", flush=True)
        for _ in range(max(1, int(patience / pause))):
            said = api.kernels_status(ref)
            state = said.status.name.lower()
            if state != last:
                print(f"{ref} is {state.replace('_', ' ')}", flush=True)
            last = state
            if state == "complete":
                return answer.url
            if state in ("error", "cancel_requested", "cancel_acknowledged"):
                print("\n".join(_readable(api.kernels_logs(ref)).splitlines()[-shown:]), flush=True)
                raise KernelError(
                    f"{ref} ended with "
                    f"{state.replace('_', ' ')}{': ' + said.failure_message if said.failure_message else ''}. The "
                    f"end of its log is above, all of it at {answer.url}."
                )
            time.sleep(pause)
    raise KernelError(f"{ref} has not ended after {patience / 3600:.0f} hours: see {answer.url}.")

# %% [markdown]
# ## What came out
# A log as Kaggle keeps it, and as it is printed:

# %%
log = json.dumps([{"stream_name": "stdout", "time": 1.2, "data": "2 images\n"},
                  {"stream_name": "stderr", "time": 1.3, "data": "DatasetError: test.csv\n"}])
assert _readable(log) == "2 images\nDatasetError: test.csv\n" and _readable("not JSON") == "not JSON"
print(_readable(log))
