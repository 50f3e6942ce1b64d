"""Benchmarks run from their first line to their last on the tiny pair; nothing here looks at seconds."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

import decode


@dataclass(frozen=True)
class Costs:
    target: float = 1.0


@pytest.fixture
def speed(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A speed model that says 2 whatever it is given, and remembers what it was given."""
    module = ModuleType("draftopd.speed")
    module.asked = []  # type: ignore[attr-defined]

    def costs(target, drafter, decoding_length, widths, repeats):
        module.asked.append((decoding_length, list(widths), repeats))  # type: ignore[attr-defined]
        return Costs()

    def predict(costs, accept_at):
        assert isinstance(costs, Costs)
        assert len(accept_at) == 3
        assert sorted(accept_at, reverse=True) == list(accept_at)
        return {4: 2.0}

    module.costs, module.predict = costs, predict  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "draftopd.speed", module)
    return module


def test_decode_writes_results_a_picture_and_a_profile(command, tmp_path: Path, capsys, speed):
    assert command("experiment=smoke/sft", "budget.epochs=2", "logger=none") == 0
    (checkpoint,) = tmp_path.rglob("last.ckpt")
    output = tmp_path / "results" / "decode.json"
    words = ["--rounds", "2", "--prompts", "3", "--tokens", "12", "--repeats", "1", "--profile"]
    decode.main([str(checkpoint), *words, "--output", str(output)])

    results = json.loads(output.read_text())
    assert {"commit", "machine", "versions", "settings", "notes", "rounds", "summary"} == results.keys()
    assert {"processor", "cores", "threads"} <= results["machine"].keys()
    assert results["settings"]["draft_vocab_size"] == 64
    first, second = results["rounds"]
    assert first["order"] != second["order"]
    assert set(first["order"]) == set(second["order"]) == set(first["systems"])
    for done in results["rounds"]:
        assert not any(done["differing_texts"].values())
        assert {system["tokens"] for system in done["systems"].values()} == {done["systems"]["plain"]["tokens"]}
        assert done["ratios"]["measured_vs_model"] == pytest.approx(done["decode_speedup"]["measured"] / 2)
    summary = results["summary"]
    assert summary["rounds"] == 2
    assert summary["differing_texts"] == 0
    lengths = summary["acceptance_length"]
    assert lengths["transformers_dflash"] == pytest.approx(lengths["ours_batch1_full_head"])
    assert lengths["ours_batch16"] == pytest.approx(lengths["ours_batch1"])
    assert [asked[1:] for asked in speed.asked] == [([4], 1)] * 2

    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last.keys() == set(decode.PRINTED)
    assert last["batch8_vs_batch1"] == pytest.approx(summary["ratios"]["batch8_vs_batch1"]["median"], abs=1e-3)
    assert output.with_suffix(".png").stat().st_size > 10_000
    profile = output.with_suffix(".profile.txt").read_text()
    assert profile.count("Self CPU %") == 2


def test_decode_counts_texts_that_are_not_the_plain_ones():
    assert decode.differing([[1, 2], [1, 3], [1]], [[1, 2], [1, 2], [1, 2]]) == [1, 2]


def test_decode_ends_with_an_error_where_a_text_differs(command, tmp_path: Path, monkeypatch, speed):
    assert command("experiment=smoke/sft", "budget.epochs=1", "logger=none") == 0
    (checkpoint,) = tmp_path.rglob("last.ckpt")
    monkeypatch.setattr(decode, "differing", lambda texts, plain: [0])
    words = ["--rounds", "1", "--prompts", "2", "--tokens", "4", "--output", str(tmp_path / "out.json")]
    with pytest.raises(SystemExit, match="9 texts are not the plain greedy text"):
        decode.main([str(checkpoint), *words])
