PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ready := $(VENV)/.ready

CHECKPOINT ?= outputs/bench/checkpoints/last.ckpt

.PHONY: quickstart smoke test slow lint ui bench-objectives bench-decode bench-train serve-check

quickstart: $(ready) ## SFT warm start, then more SFT against Draft-OPD, on a real model
	$(BIN)/python -m draftopd.fit experiment=quickstart

smoke: $(ready) ## the same path on a tiny random pair, under a minute
	$(BIN)/python -m draftopd.fit experiment=smoke

test: $(ready) ## fast tests: no network, no GPU
	$(BIN)/python -m pytest

slow: $(ready) ## tests on the real target
	$(BIN)/python -m pytest -m slow

lint: $(ready)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench-objectives: $(ready) ## every objective on a drafter whose best acceptance length is known, seconds
	$(BIN)/python benchmarks/objectives.py

bench-decode: $(ready) $(CHECKPOINT) ## decoding beside transformers; CHECKPOINT=... takes a drafter that is there
	$(BIN)/python -m benchmarks.decode --profile $(CHECKPOINT)

bench-train: $(ready) $(CHECKPOINT) ## traces, steps, memory and growth of training, beside rollouts, SFT and speculators
	$(BIN)/python -m benchmarks.train $(CHECKPOINT) $(if $(PARTS),--parts $(PARTS))

serve-check: $(ready) $(CHECKPOINT) ## vLLM and transformers beside ours; takes CHECKPOINT=... and PROMPTS=<JSON Lines file>
	$(BIN)/python -m benchmarks.serve_check $(CHECKPOINT) $(if $(PROMPTS),--prompts $(PROMPTS))

outputs/bench/checkpoints/last.ckpt: | $(ready)
	$(BIN)/python -m draftopd.fit experiment=quickstart/sft hydra.run.dir=outputs/bench

ui: $(ready) ## MLflow's pages, at the address in mlflow.yaml
	$(BIN)/python -m draftopd.ui

# torch first: CPU machines keep the CPU build that the pin finds
$(ready): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@
