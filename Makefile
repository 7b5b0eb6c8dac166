# Every target sets up its own environment in .venv on first use.
PYTHON ?= python3  # 3.11 or newer
DATA ?= data/chaos_mri  # prepared CHAOS T2 scans
RESULTS ?= results/runs  # where runs go
OVERRIDES ?=  # more Hydra overrides, e.g. OVERRIDES="segmenter=sam2.1_tiny device=cuda"

PY := .venv/bin/python
RUN := $(PY) -m fsmis.run results_dir=$(strip $(RESULTS)) $(OVERRIDES)

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint format bench doctor reproduce-chaos

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */\1\t/' | expand -t 18

setup: .venv/installed  ## install everything into .venv

.venv/installed: pyproject.toml constraints.txt
	$(strip $(PYTHON)) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

demo: setup  ## run the pipeline on generated scans: table and pictures in results/demo, no download
	$(PY) -m fsmis.phantom --out results/demo/scans
	$(PY) -m fsmis.run -m dataset=phantom dataset.root=results/demo/scans results_dir=results/demo/runs \
	    method=copy_mask,augment_match_prompt figures=all
	$(PY) -m fsmis.report results/demo/runs --out results/demo

test: setup  ## run the tests
	$(PY) -m pytest

lint: setup  ## check style and types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: setup  ## format the code
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

bench: setup  ## measure speed against the reference path, side by side
	$(PY) -m fsmis.bench

doctor: setup  ## check versions, weights and devices
	$(PY) -m fsmis.doctor

reproduce-chaos: setup  ## all folds of CHAOS-MRI, the method beside its floors: DATA=folder
	$(RUN) -m dataset=chaos_mri dataset.root=$(strip $(DATA)) \
	    method=copy_mask,registration,augment_match_prompt
	$(PY) -m fsmis.report $(strip $(RESULTS))/chaos_mri
