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
# # Publishing
# > Data sets and kernels are sent, followed until they are ready, and the log comes back when a kernel fails.
#
# Kaggle's own package signs in, uploads and requests the state. Three of its habits are corrected here. A file whose
# upload fails is left out of the data set without an error. The state of a new version is "ready" while Kaggle still
# shows the version before it. And refusals arrive as tracebacks.

# %%
#| default_exp core.publishing

# %%
#| export
import json
import time
from contextlib import contextmanager
from pathlib import Path

from mammo_nb.core.files import read_json
from mammo_nb.core.kaggle import CREDENTIALS
from mammo_nb.core.kernels import DATASET, KERNEL, KernelError, check_metadata

# %% tags=["parameters"]
lines = 2   # of the log shown below

# %%
#| export
@contextmanager
def _explained(what: str):
    "Turn the refusals of Kaggle into KernelError."
    import requests
    try:
        yield
    except requests.HTTPError as e:
        status = e.response.status_code
        raise KernelError({
            401: CREDENTIALS,
            403: f"Kaggle refuses {what}: accept the rules of the competition on its page, verify your phone number "
                 f"at kaggle.com/settings (GPUs need it), and use the credentials of the account that owns {what}.",
            404: f"Kaggle does not know {what}: check that it exists and is yours.",
            429: "Kaggle had too many requests from this account. Wait some minutes and run again."
        }.get(status,
              f"{what}: {status} {e.response.reason}. Run again; if the error remains, see kaggle.com.")) from None
    except requests.RequestException as e:
        raise KernelError(f"Kaggle does not answer ({type(e).__name__}). Run again when there is a network.") from None
    except ValueError as e:
        raise KernelError(f"{what}: {e}") from None

def user_of(
    api,      # from `core.kaggle.connect`
) -> str:     # name of the user at Kaggle
    "The user whose credentials these are."
    user = api.get_config_value(api.CONFIG_NAME_USER)
    if not user:
        raise KernelError("Kaggle's credentials name no user: set KAGGLE_USERNAME as well.")
    return user

def _version(api, ref: str) -> tuple[int, str]:
    "Number and state of the last version of a data set; 0 if there is none."
    import requests
    try:
        answer = json.loads(api.dataset_status(ref, format="json(status,current_version_number)"))
    except requests.HTTPError as e:
        if e.response.status_code in (403, 404):
            return 0, ""   # Kaggle answers 403 as well for a private data set that does not exist
        raise
    return int(answer["current_version_number"] or 0), answer["status"]

def publish_dataset(
    api,                    # from `core.kaggle.connect`
    folder: Path,           # with dataset-metadata.json
    notes: str,             # description of the version
    pause: float = 10.,     # seconds between two requests
    patience: float = 3600., # seconds until it must be ready
) -> int:                   # the version
    "Make a private data set or a new version of it, and wait until it is ready; raises KernelError."
    check_metadata(folder)
    ref = read_json(Path(folder) / DATASET)["id"]
    upload = api._upload_blob

    def upload_or_raise(path, *given, **named):
        token = upload(path, *given, **named)
        if not token:
            raise KernelError(f"{Path(path).name} did not reach Kaggle, so no version of {ref} was made. Run again: "
                              "finished uploads are not repeated.")
        return token

    with _explained(ref):
        before, _ = _version(api, ref)
        api._upload_blob = upload_or_raise
        try:
            if before:
                answer = api.dataset_create_version(str(folder), notes, quiet=True)
            else:
                answer = api.dataset_create_new(str(folder), quiet=True)
        finally:
            api._upload_blob = upload
        if answer.error:
            raise KernelError(f"{ref}: {answer.error}")
        for _ in range(max(1, int(patience / pause))):
            version, state = _version(api, ref)
            if state == "failed":
                raise KernelError(f"Kaggle could not process {ref}: see https://www.kaggle.com/datasets/{ref}.")
            if version > before and state == "ready":
                print(f"{ref} version {version} is ready", flush=True)
                return version
            time.sleep(pause)
    raise KernelError(
        f"{ref} was sent and is not ready after {patience / 60:.0f} minutes: see "
        f"https://www.kaggle.com/datasets/{ref}, then push the kernel alone with ONLY=kernel."
    )

def _readable(log: str) -> str:
    "The text of a log, which Kaggle stores as JSON with an object for each piece."
    try:
        return "".join(piece.get("data", "") for piece in json.loads(log))
    except (ValueError, AttributeError):
        return log

def push_kernel(
    api,                        # from `core.kaggle.connect`
    folder: Path,               # with kernel-metadata.json
    pause: float = 30.,         # seconds between two requests
    patience: float = 12 * 3600., # seconds until it must have ended
    shown: int = 60,            # lines of the log that are printed if it fails
) -> str:                       # its address
    "Push a kernel and wait until it has run; prints its log and raises KernelError if it fails."
    check_metadata(folder)
    ref = read_json(Path(folder) / KERNEL)["id"]
    last = ""
    with _explained(ref):
        answer = api.kernels_push(str(folder))
        if answer.error:
            raise KernelError(f"{ref}: {answer.error}")
        unknown = [*answer.invalid_dataset_sources, *answer.invalid_competition_sources, *answer.invalid_kernel_sources]
        if unknown:
            raise KernelError(
                f"{ref} was pushed without {', '.join(unknown)}, which Kaggle does not know or does not show to this "
                "account: push the data sets first, and accept the competition's rules."
            )
        print(f"{ref} version {answer.version_number}: {answer.url}", flush=True)
        for _ in range(max(1, int(patience / pause))):
            status = api.kernels_status(ref)
            state = status.status.name.lower()
            if state != last:
                print(f"{ref} is {state.replace('_', ' ')}", flush=True)
            last = state
            if state == "complete":
                return answer.url
            if state in ("error", "cancel_requested", "cancel_acknowledged"):
                print("\n".join(_readable(api.kernels_logs(ref)).splitlines()[-shown:]), flush=True)
                reason = f": {status.failure_message}" if status.failure_message else ""
                raise KernelError(f"{ref} ended with {state.replace('_', ' ')}{reason}. The end of its log is above, "
                                  f"all of it at {answer.url}.")
            time.sleep(pause)
    raise KernelError(f"{ref} has not ended after {patience / 3600:.0f} hours: see {answer.url}.")

# %% [markdown]
# ## What came out
# A log as Kaggle stores it, and as it is printed:

# %%
log = json.dumps([{"stream_name": "stdout", "time": 1.2, "data": "2 images\n"},
                  {"stream_name": "stderr", "time": 1.3, "data": "DatasetError: test.csv\n"}])
assert _readable(log) == "2 images\nDatasetError: test.csv\n" and _readable("not JSON") == "not JSON"
print(*_readable(log).splitlines()[-lines:], sep="\n")

# %% [markdown]
# ---
# [← Kernels](65_kernels.py) · [Isolation →](67_isolation.py)
