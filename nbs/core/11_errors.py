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
# # Errors
# > One base class for every error that the user can mend.
#
# The text of an error that the project expects contains the remedy. The command line prints that text without a
# traceback and ends with exit code 2. All other errors are faults of the project and keep their traceback.

# %%
#| default_exp core.errors

# %%
#| export
class ProjectError(Exception):
    "Base class of the errors whose text names the fault, its place and the remedy."

# %% [markdown]
# A module derives its own error, so that a caller can catch just that one:

# %%
class SettingsError(ProjectError):
    "settings.ini is missing or wrong."

try:
    raise SettingsError("settings.ini has no folder `raw`. Add the line `raw = datasets/raw`.")
except ProjectError as e:
    print(f"{type(e).__name__}: {e}")
