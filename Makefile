# Every target sets up its own environment in .venv on first use.
PYTHON ?= python3  # 3.11 or newer
DATA ?=  # folder of prepared scans (default: data/<dataset>), or phantom for generated ones
DATASET ?= chaos_mri  # of make baselines: chaos_mri, synapse_ct or cmr
RAW ?=  # raw download, folder or zip, to prepare into DATA first
RESULTS ?= results/$(if $(PHANTOM),demo/)runs  # where runs go
MINUTES ?= 8  # of make train-gpu
ARGS ?=  # more Hydra overrides, e.g. ARGS="segmenter=sam2.1_tiny device=cuda"

PY := .venv/bin/python
PHANTOM := $(filter phantom,$(DATA))
NAME := $(strip $(DATASET))

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint format bench bench-full gpu-check train-gpu doctor \
    data-chaos data-synapse data-cmr reproduce-chaos reproduce-synapse reproduce-cmr reproduce-all baselines

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */\1\t/' | expand -t 18

setup: .venv/installed  ## install everything into .venv

.venv/installed: pyproject.toml constraints.txt
	$(strip $(PYTHON)) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

demo: setup  ## run the pipeline on generated scans: table and pictures in results/demo, no download
	$(PY) -m fsmis phantom --dataset chaos --out results/demo/raw
	$(PY) -m data_prep.chaos --raw results/demo/raw --out results/demo/prepared
	$(PY) -m data_prep.verify results/demo/prepared --subset
	$(PY) -m fsmis run -m dataset=phantom dataset.root=results/demo/prepared results_dir=results/demo/runs \
	    method=copy_mask,augment_match_prompt figures=all
	$(PY) -m fsmis report results/demo/runs --out results/demo

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
	$(PY) -m fsmis bench --out results/runs/bench $(ARGS)

bench-full: setup  ## the two-frame step at 1024 px, 32 slices, 4 organs, once: an hour on one core
	$(PY) -m fsmis bench --only two-frame --image-size 1024 --repeats 0 \
	    --out results/runs/bench_full $(ARGS)

gpu-check: setup  ## prove numbers, speed and memory on a GPU, into results/reference/gpu.md
	$(PY) -m fsmis gpu-check $(ARGS)

train-gpu: setup  ## train the embedded checkpoint further for MINUTES on a GPU, data drawn by all cores: ARGS=
	$(PY) -m fsmis.segmenters.mini.train out=results/runs/training/gpu minutes=$(MINUTES) device=cuda \
	    workers=$$(nproc) log_every=1000 segmenter.checkpoint=sam2_mini.safetensors \
	    learning_rate=0.0002 cooldown=1.0 $(ARGS)

doctor: setup  ## check versions, weights and devices
	$(PY) -m fsmis doctor

data-chaos: setup  ## download the CHAOS training sets to data/raw and prepare them
	$(PY) -m data_prep.download --out data/raw
	$(PY) -m data_prep.chaos --raw data/raw/CHAOS_Train_Sets.zip --out data/chaos_mri

data-synapse:  ## how to get Synapse-CT (it needs a login)
	@echo '1. Register at https://www.synapse.org and join the challenge, Synapse:syn3193805.'
	@echo '2. Download Abdomen/RawData/RawData.zip (not RegData, not averaged-*: they have no kidneys).'
	@echo '3. make reproduce-synapse RAW=path/to/RawData.zip prepares it into data/synapse_ct and runs it.'

data-cmr:  ## how to get the cardiac scans (they need a login)
	@echo '1. Register at https://zmiclab.github.io/zxh/0/mscmrseg19 (MS-CMRSeg 2019).'
	@echo '2. Download the images and labels of patients 1-35; bSSFP is patient<N>_C0[_manual].nii.gz.'
	@echo '3. make reproduce-cmr RAW=path/to/folder-or-zip prepares them into data/cmr and runs them.'

# $(call prepare,module of data_prep,dataset)
define prepare
	$(if $(PHANTOM),$(PY) -m fsmis phantom --dataset $(1) --size 128 --out "$(call raw,$(2))")
	$(if $(call raw,$(2)),$(PY) -m data_prep.$(1) --raw "$(call raw,$(2))" --out "$(call root,$(2))")
	$(PY) -m data_prep.verify "$(call root,$(2))" --dataset $(2) $(if $(PHANTOM),--subset)
endef
# the same arguments
define reproduce
	$(call prepare,$(1),$(2))
	$(PY) -m fsmis run -m dataset=$(2) dataset.root="$(call root,$(2))" results_dir="$(call home,$(RESULTS))" \
	    $(if $(PHANTOM),dataset.fold_starts=2) method=copy_mask,registration,augment_match_prompt $(ARGS)
	$(PY) -m fsmis run -m dataset=$(2) dataset.root="$(call root,$(2))" results_dir="$(call home,$(RESULTS))" \
	    $(if $(PHANTOM),dataset.fold_starts=2) protocol.n_parts=1 \
	    protocol.query_slices=organ_range,full_volume $(ARGS)
	$(PY) -m fsmis report "$(call home,$(RESULTS))/$(2)"
endef
raw = $(if $(PHANTOM),results/demo/$(1)/raw,$(call home,$(RAW)))
root = $(if $(PHANTOM),results/demo/$(1)/prepared,$(or $(call home,$(DATA)),data/$(1)))
# paths are quoted below, where a shell leaves ~ as it is
home = $(patsubst ~/%,$(HOME)/%,$(strip $(1)))

reproduce-chaos: setup  ## all folds of CHAOS-MRI, the method beside its floors: DATA=, RAW=, ARGS=
	$(call reproduce,chaos,chaos_mri)

reproduce-synapse: setup  ## the same for Synapse-CT
	$(call reproduce,synapse,synapse_ct)

reproduce-cmr: setup  ## the same for CMR
	$(call reproduce,cmr,cmr)

baselines: setup  ## every method on one dataset beside published rows, two at a time: DATASET=, DATA=, RAW=, ARGS=
	$(call prepare,$(firstword $(subst _, ,$(NAME))),$(NAME))
	$(PY) -m fsmis run -m experiment=main_results hydra/launcher=joblib dataset=$(NAME) \
	    dataset.root="$(call root,$(NAME))" results_dir="$(call home,$(RESULTS))" \
	    $(if $(PHANTOM),dataset.fold_starts=2) $(ARGS)
	$(PY) -m fsmis run -m experiment=one_label hydra/launcher=joblib dataset=$(NAME) \
	    dataset.root="$(call root,$(NAME))" results_dir="$(call home,$(RESULTS))" \
	    $(if $(PHANTOM),dataset.fold_starts=2) $(ARGS)
	$(PY) -m experiments.main_results "$(call home,$(RESULTS))" --dataset $(NAME) \
	    dataset.root="$(call root,$(NAME))" $(if $(PHANTOM),dataset.fold_starts=2) $(ARGS)
	$(PY) -m fsmis report "$(call home,$(RESULTS))/$(NAME)"

reproduce-all: reproduce-chaos reproduce-synapse reproduce-cmr  ## all three, from data/
