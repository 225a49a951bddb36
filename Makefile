# mammo_nb: `make reproduce` does everything, `make test` proves it, `make help` lists the rest
SHELL  := bash
VENV   ?= .venv
PYTHON ?= python3

NB   := $(VENV)/bin/mammo-nb
PY   := $(VENV)/bin/python
ARGS  = $(if $(SYSTEM),--system '$(SYSTEM)') $(if $(RECIPE),--recipe '$(RECIPE)') $(if $(MODE),--mode '$(MODE)') \
        $(if $(RUN),--run '$(RUN)') $(if $(WEIGHTS),--weights '$(WEIGHTS)') $(foreach s,$(SET),--set '$(s)') \
        $(if $(DEBUG),--debug)

# a variable that no target knows, such as recipe=tiny, would be ignored without a word
VARIABLES := SYSTEM RECIPE MODE RUN WEIGHTS SET ALLOW_ERRORS DEBUG DATASET LOCK ONLY EXACT LAB VENV PYTHON
GIVEN     := $(foreach v,$(.VARIABLES),$(if $(filter command,$(firstword $(origin $(v)))),$(v)))
UNKNOWN   := $(filter-out $(VARIABLES) -% MAKE%,$(GIVEN))
NEAR       = $(shell $(PYTHON) -c 'import difflib, sys; \
  found = difflib.get_close_matches(sys.argv[1].upper(), sys.argv[2].upper().split(), 1, 0.5); \
  print(next((w for w in sys.argv[2].split() if w.upper() in found), ""))' '$(1)' '$(2)')
MEANT      = $(if $(1), Did you mean $(1)?)
ifneq ($(UNKNOWN),)
$(error There is no variable $(firstword $(UNKNOWN)).$(call MEANT,$(call NEAR,$(firstword $(UNKNOWN)),$(VARIABLES))) \
  There are $(VARIABLES))
endif
ifneq ($(word 2,$(RUN)),)
$(error RUN=$(RUN) must be the name of one folder, without blanks)
endif

# glibc hands freed tensors back to the system and fetches them again page by page; kept, a training
# step on a CPU takes about a third less time and gives the same result (tests/bench/malloc.py; other systems ignore
# these)
export MALLOC_MMAP_MAX_ := 0
export MALLOC_TRIM_THRESHOLD_ := -1
export MALLOC_TOP_PAD_ := 67108864

# tqdm's wish for browser widgets, once a notebook; its plain bars work in terminals and notebooks alike
export PYTHONWARNINGS := ignore:IProgress not found

.PHONY: help lint docs data weights reproduce systems kaggle-wheels kaggle-weights kaggle-push kaggle-rehearse test \
        test-first test-second test-runs test-notebooks notebooks export sync lab check-export install clean
.DEFAULT_GOAL := help
# a folder such as tests/ is no target either, though make would call it up to date
TARGETS := $(shell sed -nE 's/^([a-z-]+):.*\#\# .*/\1/p' Makefile)
PARTS   := test-first test-second test-runs test-notebooks  # of `make test`
WRONG   := $(filter-out $(TARGETS) $(PARTS) $(VENV)/.installed nbs/.exported,$(MAKECMDGOALS))
ifneq ($(WRONG),)
$(error There is no target $(firstword $(WRONG)).$(call MEANT,$(call NEAR,$(firstword $(WRONG)),$(TARGETS))) \
  `make help` lists all)
endif

help:  ## this list
	@echo 'First:'
	@$(HELP) | grep -E '^  make (reproduce|test) '
	@echo
	@echo '  reproduce takes SYSTEM, RECIPE and MODE, RUN=name, WEIGHTS=folder and SET="folds.n_folds=5";'
	@echo '  ALLOW_ERRORS=1 ends well although files failed, DEBUG=1 shows tracebacks; all targets take VENV=folder'
	@echo
	@echo 'Then:'
	@$(HELP) | grep -vE '^  make (reproduce|test) '
	@echo
	@test -x $(NB) && $(NB) systems || echo '  make systems lists all recipes, once make install has run'

HELP = grep -hE '^[a-z-]+:.*\#\# ' Makefile | sed -E 's/^([a-z-]+):.*\#\# /  make \1\t/' | expand -t 24

# ---- environment ---------------------------------------------------------------------------------
PIP = $(VENV)/bin/pip install --quiet --disable-pip-version-check

install: $(VENV)/.installed  ## create the environment

$(VENV)/.installed: pyproject.toml requirements.lock
	@$(PYTHON) .ci/ready.py $(VENV)
	@echo "installing into $(VENV) (about 7.4 GB, a few minutes)"
	@$(PYTHON) -m venv $(VENV)
	@if $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) or sys.platform != "linux")'; then \
	  $(PIP) --no-deps --require-hashes --requirement requirements.lock && \
	  $(PIP) --no-deps --no-index --no-build-isolation --editable .; \
	else echo 'requirements.lock is for Linux and Python 3.11 or later: here pip chooses versions and checks no digests'; \
	  $(PIP) --editable '.[dev]'; fi
	@touch $@

# ---- notebooks <-> package -----------------------------------------------------------------------
SOURCES := $(shell find nbs -name '*.py' -not -path '*/.*')

nbs/.exported: $(SOURCES) $(VENV)/.installed
	@$(PY) -c 'from mammo_nb.core.notebooks import command, export; command(export)'
	@touch $@

notebooks: $(VENV)/.installed  ## build .ipynb from nbs/**/*.py
	@$(PY) -c 'from mammo_nb.core.notebooks import build, command; command(build)'

export: $(VENV)/.installed  ## build the notebooks and write mammo_nb/ from them
	@$(PY) -c 'from mammo_nb.core.notebooks import command, export; command(export)'
	@touch nbs/.exported

sync: $(VENV)/.installed  ## bring edits made in built .ipynb files back to the .py
	@$(PY) -c 'from mammo_nb.core.notebooks import command, sync; command(sync)'

lab: $(VENV)/.installed  ## JupyterLab, where the .py files are notebooks; LAB="--no-browser --port 9000" is passed on
	@$(VENV)/bin/jupytext-config --settings-file $(VENV)/etc/jupyter/labconfig/default_setting_overrides.json \
	  set-default-viewer python
	@$(VENV)/bin/jupyter lab --notebook-dir nbs $(if $(filter 0,$(shell id -u)),--allow-root) \
	  --ContentsManager.hide_globs='["__pycache__", "*.pyc", "*~", ".DS_Store", "*.ipynb"]' $(LAB)

check-export: export  ## fail if mammo_nb/ is not what the notebooks say
	@test -z "$$(git status --porcelain mammo_nb)" || { git status --short mammo_nb; git --no-pager diff --stat mammo_nb; \
	  echo 'mammo_nb/ differs from a fresh export: edit nbs/, then make export'; exit 1; }

lint: $(VENV)/.installed  ## long lines, several statements in a line, unused and unknown names
	@$(VENV)/bin/ruff check .

docs: nbs/.exported  ## all notebooks, guides and modules as a web site, into runs/docs; needs no network
	@$(PY) -c 'from mammo_nb.core.notebooks import command; from mammo_nb.core.site import build_site; command(build_site)'

# ---- data and weights of others ------------------------------------------------------------------
data: $(VENV)/.installed  ## DATASET=rsna fetches the competition; for other names it prints how to get the set
	@$(NB) data $(DATASET)

weights: $(VENV)/.installed  ## fetch the winner's published weights and convert them into assets/trained
	@$(NB) weights

# ---- a run ---------------------------------------------------------------------------------------
reproduce: nbs/.exported  ## run every stage that has to run; runs/<run>/ gets submission.csv and report.html
	@$(NB) reproduce $(ARGS) $(if $(ALLOW_ERRORS),--allow-errors)

systems: nbs/.exported  ## list systems, recipes and modes
	@$(NB) systems

# ---- Kaggle --------------------------------------------------------------------------------------
kaggle-wheels: nbs/.exported  ## wheels that Kaggle's image lacks, into build/kaggle/wheels; LOCK=1: new versions
	@$(NB) kaggle-wheels $(if $(LOCK),--lock)

kaggle-weights: nbs/.exported  ## WEIGHTS=folder of SYSTEM: networks and a manifest, into build/kaggle/weights
	@$(NB) kaggle-weights $(if $(WEIGHTS),'$(WEIGHTS)') $(if $(SYSTEM),--system $(SYSTEM))

kaggle-push: nbs/.exported  ## send both as data sets, then the notebook; ONLY=kernel leaves the data sets alone
	@$(NB) kaggle-push $(if $(ONLY),--only $(ONLY))

kaggle-rehearse: nbs/.exported  ## run the submission of SYSTEM as Kaggle would; WEIGHTS=folder, EXACT=python3.12
	@$(NB) kaggle-rehearse $(if $(WEIGHTS),'$(WEIGHTS)') $(if $(SYSTEM),--system $(SYSTEM)) $(if $(EXACT),--exact $(EXACT))

# ---- tests ---------------------------------------------------------------------------------------
# four parts, two at a time with one thread each, the longest first. The notebooks of stages run in test-runs, as
# `make reproduce` runs them; test-notebooks has all others. Tests that edit or build notebooks are in test-second
RUNS   := $(addprefix tests/test_,reproduce.py systems.py contracts.py)
FIRST  := $(filter-out $(RUNS),$(wildcard tests/test_[a-h]*.py))
SECOND := $(filter-out $(RUNS) $(FIRST),$(wildcard tests/test_*.py))

test: nbs/.exported  ## the notebooks' own tests, then pytest
	@OMP_NUM_THREADS=1 $(MAKE) --no-print-directory --jobs 2 test-second test-runs test-first test-notebooks

test-first:
	@$(PY) -m pytest $(FIRST)

test-second:
	@$(PY) -m pytest $(SECOND)

test-runs:
	@env -u MAKEFLAGS $(PY) -m pytest $(RUNS)  # they call make themselves

test-notebooks:
	@export TMPDIR=$$(mktemp -d); trap 'rm -rf "$$TMPDIR"' EXIT; \
	  MPLBACKEND=agg $(VENV)/bin/nbdev-test --timing --n-workers 1 --path-re '^(?!.*nbs/(?!core/)\w+/(?!00)\d\d_)'

clean:  ## remove built notebooks, runs and scratch; the environment stays
	rm -rf runs tmp build nbs/.exported nbs/llms.txt _proc
	find nbs -name '*.ipynb' -delete
