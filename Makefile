# mammo_nb: `make reproduce` does everything, `make test` proves it, `make help` lists the rest
SHELL  := bash
SYSTEM ?= mammo
RECIPE ?= demo
MODE   ?= $(if $(filter %_roi,$(RECIPE)),detector,$(if $(filter cbis%,$(RECIPE)),labelled,full))
RUN    ?= $(if $(filter mammo,$(SYSTEM)),,$(SYSTEM)-)$(RECIPE)$(if $(filter full detector labelled,$(MODE)),,-$(MODE))
WEIGHTS ?=
DATASET ?=
SET    ?=
VENV   ?= .venv
PYTHON ?= python3

# the stages of a system, in order, and those that a mode needs: `partial` keeps a trained detector, `trained`
# keeps everything, `detector` trains nothing else, `labelled` is for a set of labelled images without a test set
stages_mammo_full     := 01_phantom 02_datasets 03_detector 04_crops 05_folds 06_train 07_select 08_engines 09_submit 10_report
stages_mammo_partial  := $(stages_mammo_full)
stages_mammo_trained  := 01_phantom 09_submit 10_report
stages_mammo_detector := 03_detector
stages_mammo_labelled := 02_datasets 03_detector 04_crops 05_folds 06_train 07_select 08_engines 10_report
# the baseline is a second model on the same data: mammo/ stands before the stages that it borrows
stages_baseline_full    := mammo/02_phantom mammo/03_datasets 04_prepare mammo/05_folds 06_train 07_select 08_engines 10_submit 11_report
stages_baseline_trained := mammo/02_phantom 10_submit 11_report

STAGES := $(stages_$(SYSTEM)_$(MODE))
NB     := $(VENV)/bin/mammo-nb
PY     := $(VENV)/bin/python
RUNDIR := $(or $(MAMMO_NB_RUNS),$(shell sed -n 's/^runs *= *//p' settings.ini))/$(RUN)
ARGS    = --system $(SYSTEM) --recipe $(RECIPE) --mode $(MODE) --run-dir $(RUNDIR) $(if $(WEIGHTS),--weights $(WEIGHTS)) $(foreach s,$(SET),--set $(s))

# glibc hands freed tensors back to the system and fetches them again page by page; kept, a training
# step on a CPU takes about a third less time and gives the same result (tests/bench/malloc.py; other systems ignore these)
export MALLOC_MMAP_MAX_ := 0
export MALLOC_TRIM_THRESHOLD_ := -1
export MALLOC_TOP_PAD_ := 67108864

# tqdm's wish for browser widgets, once a notebook; its plain bars work in terminals and notebooks alike
export PYTHONWARNINGS := ignore:IProgress not found

.PHONY: help data weights reproduce kaggle-wheels kaggle-weights kaggle-push kaggle-rehearse test test-runs test-rest notebooks export sync lab check-export install clean FORCE
.SECONDARY:
.DEFAULT_GOAL := help

help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 22
	@echo
	@echo '  reproduce takes SYSTEM=mammo|baseline RECIPE=demo|tiny|cbis|demo_roi|winner_roi RUN=name MODE=full|partial|trained|detector|labelled WEIGHTS=folder'
	@echo '  and SET="train.epochs=8 folds.n_folds=5"; ALLOW_ERRORS=1 ends well although files failed; all targets take VENV=folder'

# ---- environment ---------------------------------------------------------------------------------
install: $(VENV)/.installed  ## create the environment

$(VENV)/.installed: pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 10) <= v < (3, 14) else f"mammo_nb needs Python 3.10 to 3.13, this is {v[0]}.{v[1]}: make PYTHON=python3.12")'
	@echo "installing into $(VENV) (about 7 GB, a few minutes)"
	@$(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/pip install --quiet --disable-pip-version-check --constraint requirements.lock --editable '.[dev]'
	@touch $@

# ---- notebooks <-> package -----------------------------------------------------------------------
SOURCES := $(shell find nbs -name '*.py' -not -path '*/.*')

nbs/.exported: $(SOURCES) $(VENV)/.installed
	@$(PY) -c 'from mammo_nb.core.notebooks import export; export(".")'
	@touch $@

notebooks: $(VENV)/.installed  ## build .ipynb from nbs/**/*.py
	@$(PY) -c 'from mammo_nb.core.notebooks import build; print(*build("."), sep="\n")'

export: $(VENV)/.installed  ## build the notebooks and write mammo_nb/ from them
	@$(PY) -c 'from mammo_nb.core.notebooks import export; export(".")'
	@touch nbs/.exported

sync: $(VENV)/.installed  ## bring edits made in built .ipynb files back to the .py
	@$(PY) -c 'from mammo_nb.core.notebooks import sync; print(*sync("."), sep="\n")'

lab: $(VENV)/.installed  ## JupyterLab; the .py files open as notebooks
	@$(VENV)/bin/jupytext-config --settings-file $(VENV)/etc/jupyter/labconfig/default_setting_overrides.json set-default-viewer python
	@$(VENV)/bin/jupyter lab --notebook-dir nbs

check-export: export  ## fail if mammo_nb/ is not what the notebooks say
	@test -z "$$(git status --porcelain mammo_nb)" || { git status --short mammo_nb; git --no-pager diff --stat mammo_nb; echo 'mammo_nb/ differs from a fresh export: edit nbs/, then make export'; exit 1; }

# ---- data and weights of others ------------------------------------------------------------------
data: $(VENV)/.installed  ## DATASET=rsna fetches the competition; of vindr, miniddsm, cmmd, cddcesm, bmcd it says how to get them; then looks what is there
	@$(NB) data $(DATASET)

weights: $(VENV)/.installed  ## fetch the winner's published weights and convert them into assets/trained
	@$(NB) weights

# ---- a run ---------------------------------------------------------------------------------------
reproduce: $(RUNDIR)/report.html  ## run every stage; runs/<run>/ gets submission.csv and report.html
	@$(NB) run-end --run-dir $(RUNDIR) $(if $(ALLOW_ERRORS),--allow-errors)

$(RUNDIR)/report.html: $(RUNDIR)/$(lastword $(STAGES)).ipynb
	@$(VENV)/bin/jupyter nbconvert --log-level ERROR --to html --no-input --output report.html --output-dir $(RUNDIR) $<

# Each executed notebook is a target. Its inputs file is looked at every time and rewritten only if
# something in it has changed, so that a stage runs when it must and only then.
define stage_rules
$(RUNDIR)/inputs/$(notdir $(1)).json: nbs/.exported $(if $(2),$(RUNDIR)/$(notdir $(2)).ipynb) FORCE
	@$(NB) stage-inputs $(1) $(if $(2),--before $(notdir $(2))) $$(ARGS)
$(RUNDIR)/$(notdir $(1)).ipynb: $(RUNDIR)/inputs/$(notdir $(1)).json
	@$(NB) stage-run $(1) --stages "$(STAGES)" $$(ARGS)
endef
previous :=
$(foreach s,$(STAGES),$(eval $(call stage_rules,$(s),$(previous)))$(eval previous := $(s)))

$(if $(filter reproduce,$(MAKECMDGOALS)),$(if $(STAGES),,$(error No stages for SYSTEM=$(SYSTEM) MODE=$(MODE); the systems are: mammo and baseline, the modes: full, partial, trained, detector, labelled)))
$(if $(filter trained,$(MODE)),$(if $(WEIGHTS),,$(error MODE=trained needs WEIGHTS=folder, such as WEIGHTS=runs/demo/weights)))
$(if $(filter partial,$(MODE)),$(if $(or $(WEIGHTS),$(wildcard assets/trained/detector.onnx)),,$(error MODE=partial keeps a trained detector: put detector.onnx and detector.json into assets/trained, or name their folder, such as WEIGHTS=runs/demo/weights)))

# ---- Kaggle --------------------------------------------------------------------------------------
kaggle-wheels: nbs/.exported  ## gather what Kaggle's image lacks for predicting into build/kaggle/wheels; LOCK=1 chooses versions anew
	@$(NB) kaggle-wheels $(if $(LOCK),--lock)

kaggle-weights: nbs/.exported  ## WEIGHTS=runs/demo/weights: engines, ONNX, safetensors and a manifest into build/kaggle/weights
	@$(NB) kaggle-weights $(WEIGHTS)

kaggle-push: nbs/.exported  ## send both as data sets, then the submission's notebook, and wait for it; ONLY=kernel leaves the data sets alone
	@$(NB) kaggle-push $(if $(ONLY),--only $(ONLY))

kaggle-rehearse: nbs/.exported  ## run the submission as Kaggle would: wheels only, no network, a hidden test set; WEIGHTS=runs/demo/weights, EXACT=python3.12
	@$(NB) kaggle-rehearse $(WEIGHTS) $(if $(EXACT),--exact $(EXACT))

# ---- tests ---------------------------------------------------------------------------------------
# two halves of about the same length side by side, one thread each: runs of `make reproduce`, and all else
test: nbs/.exported  ## the notebooks' own tests, then pytest
	@OMP_NUM_THREADS=1 $(MAKE) --no-print-directory --jobs 2 test-runs test-rest

test-runs:
	@env -u MAKEFLAGS $(PY) -m pytest tests/test_reproduce.py  # it calls make itself

test-rest:
	@MPLBACKEND=agg $(VENV)/bin/nbdev-test --timing --n-workers 1
	@$(PY) -m pytest --ignore tests/test_reproduce.py

clean:  ## remove built notebooks, runs and scratch; the environment stays
	rm -rf runs tmp build nbs/.exported nbs/llms.txt _proc
	find nbs -name '*.ipynb' -delete
