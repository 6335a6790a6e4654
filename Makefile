# `make help` lists the targets. Everything runs in .venv, made on first use from constraints.txt.
PYTHON ?= python3
VENV   ?= .venv
CORES  ?= $(shell getconf _NPROCESSORS_ONLN)
# One more than there are cores: tests wait for processes and disks a tenth of the time.
TEST_WORKERS ?= $(shell expr $(CORES) + 1)
PYTHON312 ?= python3.12
MEGATRON  := .venv-megatron
BIN    := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder -p tests.cpu_times
PIP    := $(BIN)/python -m pip --disable-pip-version-check

# The suite starts hundreds of Pythons; without bytecode on disk each compiles again all that it imports (10 s and more).
unexport PYTHONDONTWRITEBYTECODE

NEEDS_GPU := benchmarks/gpu.py benchmarks/document_attention.py
NEEDS_TEXT := benchmarks/averages.py benchmarks/branches.py benchmarks/spikes.py benchmarks/muon_vs_adamw.py benchmarks/races.py benchmarks/stability.py benchmarks/midtraining.py benchmarks/gguf_files.py

# Of `make train` and `make run-scaling-law`; what is empty is as configs/depth.yaml says. (override: also where the
# command line has a name with nothing behind it.)
override NGPUS := $(or $(NGPUS),1)
override MODE := $(or $(MODE),pretraining)
DEPTH      ?=
TARGET_FLOPS ?=
BATCH_SIZE ?=
CHECKPOINT ?=
override VAL_EVALS := $(or $(VAL_EVALS),true)
override CORE_EVALS := $(or $(CORE_EVALS),false)
override CHATCORE_EVALS := $(or $(CHATCORE_EVALS),false)
override SWEEP := $(or $(SWEEP),configs/scaling_law.yaml)
RESULTS     = $(shell sed -n 's/^output_dir: *\([^ ]*\).*/\1/p' $(SWEEP))

OVERRIDES = $(if $(DEPTH),model.depth=$(DEPTH)) $(if $(TARGET_FLOPS),step_scheduler.target_flops=$(TARGET_FLOPS)) \
  $(if $(BATCH_SIZE),step_scheduler.local_batch_size=$(BATCH_SIZE)) $(if $(CHECKPOINT),init_from=$(CHECKPOINT)) \
  $(if $(filter false,$(VAL_EVALS)),step_scheduler.val_every_steps=null) \
  $(if $(filter true,$(CORE_EVALS)),evaluation.tasks=core)
# runs of other depths and budgets have folders of their own: checkpoints/depth6_1e18
NAMED = $(DEPTH)$(if $(TARGET_FLOPS),_$(TARGET_FLOPS))
FOLDER_pretraining  = checkpoints/depth$(NAMED)
FOLDER_mid-training = checkpoints/depth_chat$(NAMED)
OVERRIDES += $(if $(NAMED),checkpoint.checkpoint_dir=$(FOLDER_$(MODE)))
TRAIN_pretraining  = pretrain llm -c configs/depth.yaml $(OVERRIDES)
TRAIN_mid-training = pretrain llm -c configs/midtrain_depth.yaml $(OVERRIDES)
# the steps of configs/chat_depth.yaml say the rest themselves
NOT_OF_ALL = $(strip $(if $(BATCH_SIZE),BATCH_SIZE) $(if $(CHECKPOINT),CHECKPOINT) \
  $(if $(filter-out true,$(VAL_EVALS)),VAL_EVALS) $(if $(filter-out false,$(CORE_EVALS)),CORE_EVALS))
TRAIN_all          = run configs/chat_depth.yaml $(if $(DEPTH),--set depth=$(DEPTH)) \
  $(if $(TARGET_FLOPS),--set target_flops=$(TARGET_FLOPS))
TRAINED_mid-training = $(FOLDER_mid-training)
TRAINED_all          = runs/chat_depth/midtrain
# with-code: generated programs of HumanEval are run too, confined
CHATCORE = eval $(TRAINED_$(MODE)) --tasks chatcore $(if $(filter with-code,$(CHATCORE_EVALS)),--allow-code-execution)

.DEFAULT_GOAL := help
.PHONY: help quickstart train ddp-train environment chat-server run-scaling-law gpu-status install dev check ruff mypy lint-imports codespell format test test-unit promises conformance conformance-newest same torture bench bench-gpu docs clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

quickstart: $(VENV)/.installed ## install, then text -> tokens -> GPT -> score, on this machine's own Python sources
	$(BIN)/automodel quickstart --config configs/quickstart.yaml --output-dir runs/quickstart

train: $(VENV)/.installed ## MODE=pretraining, mid-training or all: NGPUS= DEPTH= TARGET_FLOPS= BATCH_SIZE= CHECKPOINT= VAL_EVALS= CORE_EVALS= CHATCORE_EVALS=
	$(if $(filter pretraining mid-training all,$(MODE)),,$(error MODE=$(MODE): pretraining, mid-training or all))
	$(if $(filter mid-training,$(MODE)),$(if $(CHECKPOINT),,$(error MODE=mid-training needs CHECKPOINT=, the run to begin from)))
	$(if $(filter true false,$(VAL_EVALS)),,$(error VAL_EVALS=$(VAL_EVALS): true or false))
	$(if $(filter true false,$(CORE_EVALS)),,$(error CORE_EVALS=$(CORE_EVALS): true or false))
	$(if $(filter all,$(MODE)),$(if $(NOT_OF_ALL),$(error MODE=all takes no $(NOT_OF_ALL): change configs/chat_depth.yaml)))
	$(if $(filter false true with-code,$(CHATCORE_EVALS)),,$(error CHATCORE_EVALS=$(CHATCORE_EVALS): true, with-code or false))
	$(if $(filter-out false,$(CHATCORE_EVALS)),$(if $(TRAINED_$(MODE)),,$(error CHATCORE_EVALS needs MODE=mid-training or all)))
	$(BIN)/automodel $(TRAIN_$(MODE)) --nproc-per-node $(NGPUS)
	$(if $(filter-out false,$(CHATCORE_EVALS)),$(BIN)/automodel $(CHATCORE) --nproc-per-node $(NGPUS))

ddp-train: train # nanoGPT's name

run-scaling-law: $(VENV)/.installed ## depths 6-14 x 1e18-6e18 FLOPs, then the law and its picture: NGPUS= SWEEP=
	$(if $(RESULTS),,$(error SWEEP=$(SWEEP): no such file, or no output_dir in it))
	$(BIN)/automodel sweep run -c $(SWEEP) --nproc-per-node $(NGPUS)
	$(BIN)/automodel sweep fit $(RESULTS)
	$(BIN)/automodel sweep plot $(RESULTS)

chat-server: $(VENV)/.installed ## chat page and OpenAI-compatible API of a checkpoint on 127.0.0.1:8003: CHECKPOINT=
	$(if $(CHECKPOINT),,$(error give CHECKPOINT=, a run folder, a checkpoint or a Hugging Face folder))
	$(BIN)/automodel serve $(CHECKPOINT)

gpu-status: ## what the GPUs of this machine are doing
	@nvidia-smi || echo "no NVIDIA GPU or driver here; automodel doctor says what there is"

environment: install # nanoGPT's name
install: $(VENV)/.installed ## create .venv with the command line and all extras
dev: $(VENV)/.dev ## the same plus what checks and tests need

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "automodel needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; try: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.installed: $(VENV)/.python pyproject.toml constraints.txt
	$(PIP) install -q -c constraints.txt -e '.[all]'
	@touch $@

$(VENV)/.dev: $(VENV)/.python pyproject.toml constraints.txt
	$(PIP) install -q --no-compile -c constraints.txt -e '.[dev]'  # most of 18,000 files are never imported
	@touch $@ $(VENV)/.installed

check: $(VENV)/.dev ## lint, format, types, import laws, spelling, all at once
	@$(MAKE) --no-print-directory -j $(CORES) ruff mypy lint-imports codespell

ruff: $(VENV)/.dev
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
mypy: $(VENV)/.dev
	$(BIN)/mypy -n $(CORES) || { [ $$? -eq 2 ] && $(BIN)/mypy; }  # 2: a worker took over 3 s to start, on a busy machine
lint-imports: $(VENV)/.dev
	$(BIN)/lint-imports
codespell: $(VENV)/.dev
	$(BIN)/codespell src tests benchmarks docs configs README.md CONTRIBUTING.md Makefile

format: $(VENV)/.dev ## rewrite the code in the house format
	$(BIN)/ruff check --fix src tests benchmarks
	$(BIN)/ruff format src tests benchmarks

test: $(VENV)/.dev ## the whole CPU suite, on all cores
	$(PYTEST)

test-unit: $(VENV)/.dev ## the part of it that mirrors src
	$(PYTEST) --ignore tests/promises

promises: $(VENV)/.dev ## the other part: resume, parity, crash, memory
	$(PYTEST) tests/promises

conformance: $(VENV)/.dev ## compare with llama.cpp, with megatron-core 0.16.1, and with 0.19.2 where there is a Python 3.12
	AUTOMODEL_TESTS=nightly $(BIN)/python -m pytest tests/data/test_megatron_conformance.py tests/checkpoint/gguf
	@if $(PYTHON312) -c pass 2>/dev/null; then $(MAKE) conformance-newest; \
	else echo "not compared with megatron-core 0.19.2: it needs Python 3.12; try: make conformance PYTHON312=/path/to/python3.12"; fi

conformance-newest: # its own environment: the newest megatron-core, and no more than its comparison needs
	test -x $(MEGATRON)/bin/python || $(PYTHON312) -m venv $(MEGATRON)
	$(MEGATRON)/bin/python -m pip --disable-pip-version-check install -q -e . megatron-core==0.19.2 pytest hypothesis
	AUTOMODEL_TESTS=nightly $(MEGATRON)/bin/python -m pytest tests/data/test_megatron_conformance.py

same: $(VENV)/.dev ## compare with another commit, byte for byte: make same BASE=v0.1.0
	$(BIN)/python tests/promises/same_as_before.py $(BASE)

torture: $(VENV)/.dev ## the full fault-injection counts, and all examples of properties (long)
	AUTOMODEL_TESTS=nightly $(BIN)/python -m pytest -m torture -s
	AUTOMODEL_TESTS=nightly $(PYTEST) tests/config tests/corpus tests/data

bench: $(VENV)/.dev ## every CPU benchmark that needs no text or checkpoint, ratios against reference loops (long)
	for file in $(filter-out $(NEEDS_GPU) $(NEEDS_TEXT) benchmarks/reference_loops.py,$(wildcard benchmarks/*.py)); do $(BIN)/python $$file || exit 1; done

bench-gpu: $(VENV)/.dev ## the same on one GPU, under ten minutes
	$(BIN)/python benchmarks/gpu.py --minutes 8

docs: $(VENV)/.dev ## regenerate docs/config.md from the schema, and the picture of the rooms from the imports
	$(BIN)/python -m automodel_cli.config.docs > docs/config.md
	$(BIN)/python docs/architecture_svg.py > docs/images/architecture.svg

clean: ## remove the virtual environment and caches (never runs/)
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
