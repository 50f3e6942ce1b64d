"""The benchmark of windows runs on the tiny pair: τ by the part of a text, and of texts that end early."""

import json
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import window
from draftopd.checkpoints.native import restore
from draftopd.decoding.rollout import rollout


def test_tau_by_the_part_of_a_text(checkpoint: Path, tmp_path: Path):
    words = {"length": 5, "times": 3, "prompts": None, "written": None, "cache_dir": tmp_path}
    found = window.tau(Namespace(trained=[checkpoint, checkpoint], **words))
    run = restore(checkpoint)
    target, drafter, asked = run.target, run.drafter, run.encoded("test")
    whole, ended = (replace(run.decoding, max_new_tokens=limit) for limit in (15, 5))
    texts = [r.trace for r in rollout(target, drafter, asked, whole)]
    assert found["texts"] == len(texts)
    far = [text for text in texts if text.response_length > 11]
    assert found["with_a_last_part"] == len(far) > 1

    first, second = found["drafters"]
    pooled = sum(len(t.tokens) - t.prompt_length - 1 for t in texts) / sum(len(t.anchors) for t in texts)
    assert first["whole"]["value"] == pytest.approx(pooled)
    short = rollout(target, drafter, asked, ended)
    steps = [(r.trace.response_length - 1, len(r.trace.anchors)) for r in short]
    assert first["short"]["value"] == pytest.approx(sum(a for a, _ in steps) / sum(b for _, b in steps))
    last = [(int(n), int(a) - t.prompt_length) for t in far for a, n in zip(t.anchors, t.committed, strict=True)]
    inside = [n for n, at in last if at >= 10]
    assert first["part_3"]["value"] == pytest.approx(sum(inside) / len(inside))
    assert first["last_over_first"]["value"] == pytest.approx(first["part_3"]["value"] / first["part_1"]["value"])
    assert second["over_the_first_drafter"]["part_2"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    json.dumps(found)
