PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ready := $(VENV)/.ready

CHECKPOINT ?= outputs/bench/checkpoints/last.ckpt

.DEFAULT_GOAL := help
.PHONY: help quickstart smoke test coverage slow soak mutants lint docs docs-serve ui screenshots bench-objectives bench-decode bench-train study-check serve-check gpu-check gpu-bundle

help: ## this list
	@awk -F ':[^#]*## ' '/^[a-z-]+:.*## / { printf "make %-17s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

quickstart: $(ready) ## SFT warm start, then more SFT against Draft-OPD and new prompts, on a real model; 10 to 30 minutes
	$(BIN)/python -m draftopd.fit experiment=quickstart

smoke: $(ready) ## the same path on a tiny random pair, under a minute
	$(BIN)/python -m draftopd.fit experiment=smoke

test: $(ready) ## fast tests: no network, no GPU
	$(BIN)/python -m pytest

coverage: $(ready) ## the fast tests, and the share of src/ that they run (under 90 % fails); about 1.6 times as long
	$(BIN)/python -m pytest --cov --cov-report=

slow: $(ready) ## tests on the real target
	$(BIN)/python -m pytest -m slow

soak: $(ready) ## 2,000 rollouts, 1,000 steps and 20 runs in one process: memory, tensors, files and threads must not grow
	$(BIN)/python tests/soak.py

mutants: $(ready) ## small changes to the source that no test sees (docs/mutants.md); FILES="decoding/acceptance.py ..." takes some
	$(BIN)/python tests/mutants.py $(FILES)

lint: $(ready) ## ruff, mypy, and a check of the notebooks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python .ci/check_notebooks.py notebooks/*.ipynb

docs: $(ready) ## the site of README.md and docs/, into site/; any broken link fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-serve: $(ready) ## the same on this machine, made anew as files change
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

ui: $(ready) ## MLflow's pages of the runs; ARGS="--port 5001 --store FILE"
	$(BIN)/python -m draftopd.ui $(ARGS)

screenshots: $(ready) ## docs/pictures: a new user's path, timed; needs playwright and Chromium; ARGS="FOLDER --store DB" takes a run that is there
	$(BIN)/python .ci/screenshots.py $(ARGS)

bench-objectives: $(ready) ## every objective on a drafter whose best acceptance length is known, seconds
	$(BIN)/python benchmarks/objectives.py

bench-decode: $(ready) $(CHECKPOINT) ## decoding beside transformers; CHECKPOINT=... takes an existing drafter
	$(BIN)/python -m benchmarks.decode --profile $(CHECKPOINT)

bench-train: $(ready) $(CHECKPOINT) ## training's time and memory beside rollouts, SFT, speculators; CHECKPOINT=... PARTS=... ARGS=...
	$(BIN)/python -m benchmarks.train $(CHECKPOINT) $(if $(PARTS),--parts $(PARTS)) $(ARGS)

study-check: $(ready) ## the tables of docs/results.md made anew from benchmarks/results/study; ARGS=--write writes them
	$(BIN)/python -m benchmarks.study check $(ARGS)

serve-check: $(ready) $(CHECKPOINT) ## vLLM and transformers beside ours; CHECKPOINT=... PROMPTS=<JSON Lines file>
	$(BIN)/python -m benchmarks.serve_check $(CHECKPOINT) $(if $(PROMPTS),--prompts $(PROMPTS))

gpu-check: $(ready) ## does all run on this GPU, and how fast: six minutes at most, a JSON a part; without a GPU a rehearsal; ARGS=...
	$(BIN)/python -m benchmarks.gpu_check $(ARGS)

gpu-bundle: $(ready) ## what a GPU machine without a network lacks for it, in parts of 60 MB: outputs/gpu-bundle; ARGS="--checkpoint FILE"
	$(BIN)/python -m benchmarks.gpu_bundle outputs/gpu-bundle $(ARGS)

outputs/bench/checkpoints/last.ckpt: | $(ready)
	$(BIN)/python -m draftopd.fit experiment=quickstart/sft hydra.run.dir=outputs/bench

# torch first: CPU machines keep the CPU build that the pin finds
$(ready): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@
