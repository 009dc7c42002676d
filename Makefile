# Every target sets up .venv by itself when it is missing. Settings: PRESET=auto|demo|short|paper, SEEDS="0 1 2",
# ROWS="cft direct", DATA_MIRROR=<folder or URL>, ARGS="--any-setting value", PYTHON=<interpreter for the venv>,
# WORKERS=<processes of the tests, or bugs at a time>, COMPILE=1 (networks through torch.compile; needs a C++ compiler).
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
PRESET ?= auto
SEEDS ?=
ROWS ?=
ARGS ?=
WORKERS ?= 2
PAPERS := $(notdir $(patsubst %/claims.toml,%,$(wildcard papers/*/claims.toml)))
export DATA_MIRROR

help: ## this list
	@grep -hE '^[a-zA-Z%_-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 26
	@echo; echo "papers: $(subst _,-,$(PAPERS))"

# Whether $(VENV) holds the packages: ours is made, or renewed when the lock has changed; a foreign one is only judged.
$(VENV)/.ready: FORCE
	@python=$(PY); [ -x $$python ] || python="$(PYTHON)"; \
	command -v $$python >/dev/null || { echo "error: PYTHON=$$python is not there; name an interpreter: make PYTHON=python3.12 ..." >&2; exit 2; }; \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $$python is older than 3.11; name a newer one: make PYTHON=python3.12 ..." >&2; exit 2; }; \
	$$python -m facepapers.common.tools.packages $(VENV) reproduce $(EXTRAS)

setup: $(VENV)/.ready ## create .venv with the versions of requirements.lock, and make it find this checkout from any folder

reproduce-%: $(VENV)/.ready ## train, evaluate, print the table of one paper (PRESET, SEEDS, ROWS, ARGS)
	@$(PY) -m facepapers.common.tools.reproduce $* --preset $(PRESET) $(if $(SEEDS),--seeds "$(SEEDS)") $(if $(ROWS),--rows "$(ROWS)") $(ARGS)

reproduce-all: $(VENV)/.ready ## every paper in turn
	@for paper in $(PAPERS); do $(PY) -m facepapers.common.tools.reproduce $$paper --preset $(PRESET) $(ARGS) || exit $$?; done

settle: $(VENV)/.ready ## run what settles most open claims (BUDGET=2h, PAPER=<one>, ARGS=--dry-run for the plan)
	@$(PY) -m facepapers.common.tools.settle $(if $(BUDGET),--budget "$(BUDGET)") $(if $(PAPER),--paper "$(PAPER)") $(ARGS)

sweep: EXTRAS = sweep
sweep: $(VENV)/.ready ## rows and seeds of PAPER=<one> by Snakemake, here or on a cluster (PRESET, SEEDS, ROWS, ARGS="-- --executor slurm")
	@$(PY) -m facepapers.common.tools.sweep "$(PAPER)" --preset $(PRESET) $(if $(SEEDS),--seeds "$(SEEDS)") $(if $(ROWS),--rows "$(ROWS)") $(ARGS)

new-paper: $(VENV)/.ready ## a running skeleton of a paper and its test (NAME=center-loss); see papers/README.md
	@$(PY) -m facepapers.common.tools.new_paper "$(NAME)"

test: $(VENV)/.ready ## the whole test suite (no network, no GPU, no data set needed)
	@$(PY) -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

fuzz: $(VENV)/.ready ## damage a small file of every kind that is read, forty times each, and look at the answers (ARGS="--only png")
	@$(PY) -m tests.fuzz $(ARGS)

mutants: $(VENV)/.ready ## whether the tests catch listed bugs, put in one at a time (PAPER=, ROOM=, ID=); takes hours
	@$(PY) -m tests.mutate --workers $(WORKERS) $(if $(PAPER),--paper $(PAPER)) $(if $(ROOM),--room $(ROOM)) $(if $(ID),--id $(ID)) $(ARGS)

verify: $(VENV)/.ready ## recompute every number of every table from the predictions (PAPER=<one>, ARGS=-v for each cell)
	@$(PY) -m facepapers.common.tools.report verify $(if $(PAPER),--paper $(PAPER)) $(ARGS)

report: $(VENV)/.ready ## rewrite tables, figures and results/index.html from claims and records
	@$(PY) -m facepapers.common.tools.report write

why: $(VENV)/.ready ## where a number comes from: make why CELL=<paper>.<claim>
	@$(PY) -m facepapers.common.tools.report why "$(CELL)"

release: $(VENV)/.ready ## release a recorded run's network (RUN=<paper>/<run> NAME=<name> ARGS="--stored int8")
	@$(PY) -m facepapers.common.tools.release "$(RUN)" "$(NAME)" $(ARGS)

weights: $(VENV)/.ready ## the released models: their hash, size, numbers and card (ARGS=--write renews the cards)
	@$(PY) -m facepapers.common.tools.weights $(ARGS)

export: EXTRAS = export
export: $(VENV)/.ready ## released models as ONNX and torch.export files in build/export (PAPER=<one>, ARGS="--out FOLDER")
	@$(PY) -m facepapers.common.tools.export $(PAPER) $(ARGS)

# A paper has one of two commands: `predict` says what a face shows, `verify` whether two show the same person.
predict: $(VENV)/.ready ## what a paper's network says of photos (PAPER=resup IMAGES="a.jpg folder" ARGS="--whole")
	@[ -n "$(PAPER)" ] && [ -f papers/$(subst -,_,$(PAPER))/released.py ] || { echo "error: name a paper: make predict PAPER=coarse-to-fine IMAGES=photo.jpg (known: $(subst _,-,$(PAPERS)))" >&2; exit 2; }
	@paper=$(subst -,_,$(PAPER)); command=predict; [ -f papers/$$paper/predict.py ] || command=verify; \
	$(PY) -m facepapers.papers.$$paper.$$command $(IMAGES) $(ARGS)

data: $(VENV)/.ready ## the data sets and their state
	@$(PY) -m facepapers.common.data list

data-%: $(VENV)/.ready ## obtain, check and prepare one data set (DATA_MIRROR=<folder or URL>)
	@$(PY) -m facepapers.common.data get $*

verify-data-%: $(VENV)/.ready ## decode a prepared data set and compare its fingerprint
	@$(PY) -m facepapers.common.data verify $*

notebooks: $(VENV)/.ready ## execute every notebook in place (PAPER=<one>)
	@$(PY) -m facepapers.common.tools.notebooks $(if $(PAPER),papers/$(subst -,_,$(PAPER))/explain.ipynb) $(ARGS)

coverage: $(VENV)/.ready ## simulate how often intervals hold the truth; continues results/coverage.csv (ARGS="--papers resup")
	@$(PY) -m facepapers.common.tools.coverage $(ARGS)

bench: $(VENV)/.ready ## speed as ratios measured in one run (PAPER=<one>)
	@$(PY) -m facepapers.common.tools.bench $(PAPER) $(ARGS)

lint: EXTRAS = dev
lint: $(VENV)/.ready ## ruff, and mypy over functions with annotations
	@$(PY) -m ruff check . && $(PY) -m ruff format --check . --quiet || { echo "run: $(PY) -m ruff format ." >&2; exit 1; }
	@mkdir -p build/typed/facepapers && ln -sfn $(addprefix $(CURDIR)/,common papers facepapers/__init__.py) build/typed/facepapers
	@cd build/typed && $(abspath $(PY)) -m mypy --config-file $(CURDIR)/pyproject.toml -p facepapers

lock: $(VENV)/.ready ## rewrite requirements.lock from pyproject.toml (needs network)
	@$(PY) -m pip install --quiet --upgrade --target build/uv uv
	@PYTHONPATH=build/uv $(PY) -m uv pip compile pyproject.toml --extra reproduce --extra dev --extra export --universal --python-version 3.11 --generate-hashes --no-header --quiet -o requirements.lock

clean: ## remove caches and your own runs (results/local); data and records stay
	rm -rf results/local .pytest_cache .ruff_cache build *.egg-info
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

.PHONY: help setup reproduce-all settle sweep new-paper test mutants fuzz verify report why release weights export predict data notebooks coverage bench lint lock clean FORCE
