"""The served-acceptance gate without vLLM: the comparison, what is said of failures."""

import copy
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from benchmarks.serve_check import main, verdict
from benchmarks.serve_engines import by_transformers, ours
from benchmarks.vllm_environment import REQUIREMENTS, ask_vllm, ensure

from benchmarks import serve_check
from draftopd.drafters.dflash import DFlash
from draftopd.drafters.eagle3 import Eagle3
from draftopd.errors import DraftError
from draftopd.publishing.audit import Served, from_accepted
from draftopd.target import load
from draftopd.target.model import Target
from pair import PROMPTS

LIMIT = 24


def test_what_vllm_accepts_behind_the_end_does_not_count():
    answer = [
        {"tokens": [7, 8, 9, 10, 11], "accepted": [1, 4]},  # the second verification ran 3 tokens over
        {"tokens": [7, 8, 9], "accepted": [0]},  # a step without drafts
        {"tokens": [7], "accepted": []},
        {"tokens": [7, 8], "accepted": [0, 2]},  # a verification that was under way when the response had ended
    ]
    served = from_accepted([[1], [2], [3], [4]], answer)
    assert served.texts == [[1, 7, 8, 9, 10, 11], [2, 7, 8, 9], [3, 7], [4, 7, 8]]
    assert served.committed == [[2, 2], [1, 1], [], [1]]
    assert served.tau == 7 / 5


@pytest.fixture(scope="module")
def engines(target: Target, eager_drafter: DFlash) -> dict[str, Served]:
    mine = ours(target, eager_drafter, PROMPTS, LIMIT)
    served = dict.fromkeys(("ours", "transformers", "vllm", "vllm_mended"), mine)
    return {"plain": ours(target, None, PROMPTS, LIMIT), **served}


def judged(engines: dict[str, Served], target: Target) -> dict[str, Any]:
    return verdict(engines, PROMPTS, LIMIT, target)


def test_equal_texts_and_lengths_pass(engines: dict[str, Served], target: Target):
    report = judged(engines, target)
    assert report["passed"]
    assert report["texts_equal"]
    others = ("transformers", "vllm", "vllm_mended")
    assert report["deviation"] == dict.fromkeys(others, 0.0)
    assert report["same_verifications"] == dict.fromkeys(others, len(PROMPTS))
    assert report["tau_ours"] == report["tau_vllm"] == report["tau_transformers"] > 1


@pytest.mark.parametrize("name", ["vllm", "vllm_mended", "transformers"])
def test_another_acceptance_length_fails(engines: dict[str, Served], target: Target, name: str):
    slow = replace(engines[name], committed=[[1] * sum(counts) for counts in engines[name].committed])
    report = judged(engines | {name: slow}, target)
    assert not report["passed"]
    assert report["texts_equal"]
    assert report["deviation"][name] == pytest.approx(1 / report["tau_ours"] - 1)


def test_the_same_mean_of_other_verifications_fails(engines: dict[str, Served], target: Target):
    other = replace(engines["vllm"], committed=[counts[::-1] for counts in engines["vllm"].committed])
    report = judged(engines | {"vllm_mended": other}, target)
    assert report["deviation"]["vllm_mended"] == 0.0
    assert report["same_verifications"]["vllm_mended"] < len(PROMPTS) / 2
    assert not report["passed"]


def test_another_text_fails_unless_the_target_is_undecided(
    engines: dict[str, Served], target: Target, monkeypatch: pytest.MonkeyPatch
):
    texts = copy.deepcopy(engines["vllm"].texts)
    texts[2][-1] = (texts[2][-1] + 1) % target.vocab_size
    changed = engines | {"vllm": replace(engines["vllm"], texts=texts)}
    report = judged(changed, target)
    assert not report["passed"]
    assert not report["texts_equal"]
    (wrong,) = report["texts"]["vllm"]["wrong"]
    assert (wrong["prompt_length"], wrong["position"]) == (len(PROMPTS[2]), len(texts[2]) - 1)
    monkeypatch.setattr("benchmarks.lossless.float64_gap", lambda _target, _tokens: 1e-5)
    report = judged(changed, target)
    assert report["passed"]
    assert len(report["texts"]["vllm"]["ties"]) == 1


def test_transformers_is_compared_with_the_full_head(engines: dict[str, Served], target: Target):
    slow = replace(engines["ours"], committed=[[1] * sum(counts) for counts in engines["ours"].committed])
    report = judged(engines | {"ours_full_head": slow, "transformers": slow}, target)
    assert report["passed"]
    assert report["tau_transformers"] == 1.0


@pytest.fixture
def served(tmp_path: Path, target: Target, eager_drafter: DFlash, monkeypatch: pytest.MonkeyPatch):
    """Runs the gate with a vLLM that answers as ours does; gives back exit code, report and the request."""
    target.model.save_pretrained(tmp_path / "target")
    target.tokenizer.save_pretrained(tmp_path / "target")
    loaded = load.hf(str(tmp_path / "target"))
    asked: dict[str, Any] = {}

    def answer(environment: Path, request: dict[str, Any]) -> dict[str, Any]:
        asked.update(request, config=json.loads(Path(request["drafter"], "config.json").read_text()))
        mine = ours(loaded, run.drafter, request["prompts"], request["max_new_tokens"])
        responses = [
            {"tokens": text[len(prompt) :], "accepted": [count - 1 for count in counts]}
            for text, counts, prompt in zip(mine.texts, mine.committed, PROMPTS, strict=True)
        ]
        return {"vllm": responses, "vllm_mended": responses, "counters": {"num_drafts": 9}, "version": "0"}

    def encoded(split: str, limit: int) -> Sequence[list[int]]:
        assert (split, limit) == ("test", 100)
        return PROMPTS

    run = SimpleNamespace(target=loaded, drafter=eager_drafter, encoded=encoded)
    monkeypatch.setattr(serve_check, "restore", lambda _checkpoint: run)
    monkeypatch.setattr(serve_check, "ask_vllm", answer)
    return run, asked


def test_the_gate_ends_with_one_json_object(served, tmp_path: Path, capsys):
    _, asked = served
    assert main(["any.ckpt", "--tokens", str(LIMIT)]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["passed"]
    assert report["texts_equal"]
    assert report["tau_ours"] == report["tau_vllm"] == report["tau_transformers"] == report["tau_vllm_mended"]
    assert report["vllm_counters"] == {"num_drafts": 9}
    assert asked["target"] == str(tmp_path / "target")
    assert asked["method"] == "dflash"
    assert asked["config"]["architectures"] == ["DFlashDraftModel"]
    assert asked["num_speculative_tokens"] == asked["config"]["block_size"] - 1 == 4
    assert asked["max_model_len"] >= max(map(len, PROMPTS)) + LIMIT + 5
    assert not Path(asked["drafter"]).exists()


def test_a_wrong_layer_offset_reaches_both_engines_and_the_checks_refuse_it(
    served, capsys, monkeypatch: pytest.MonkeyPatch
):
    run, asked = served
    torch.manual_seed(0)
    run.drafter = DFlash(run.target.shape, num_layers=1, block_size=5, layer_ids=[0, 1])
    read: list[tuple[int, ...]] = []

    def assisted(target: Target, drafter: DFlash, prompts: Sequence[list[int]], tokens: int) -> Served:
        read.append(drafter.layer_ids)
        return by_transformers(target, drafter, prompts, tokens)

    monkeypatch.setattr(serve_check, "by_transformers", assisted)
    main(["any.ckpt", "--tokens", "4", "--break", "layer-offset"])
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    shifted = [i + 1 for i in run.drafter.layer_ids]
    assert asked["config"]["dflash_config"]["target_layer_ids"] == shifted
    assert read == [tuple(shifted)]
    assert report["broken"] == "layer-offset"
    (refusal,) = [finding for finding in report["findings"] if finding.startswith("error")]
    assert f"lets the drafter read {{'layer_ids': {shifted}" in refusal


def test_eagle3_is_judged_by_vllm_alone(served, capsys):
    run, asked = served
    torch.manual_seed(0)
    run.drafter = Eagle3(run.target.shape, block_size=4, layer_ids=[0, 1, 2])
    run.drafter.initialise(run.target.head)
    assert main(["any.ckpt", "--tokens", "4"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (asked["method"], asked["num_speculative_tokens"]) == ("eagle3", 3)
    assert asked["config"]["architectures"] == ["LlamaForCausalLMEagle3"]
    assert report["tau_transformers"] is None
    assert report["tau_vllm"] == report["tau_ours"]


@pytest.mark.slow
def test_a_target_that_lies_nowhere_cannot_be_served(served, capsys, target: Target):
    run, _ = served
    run.target = target
    with pytest.raises(SystemExit) as stop:
        main(["any.ckpt"])
    assert stop.value.code == 2
    assert "not loaded from a folder" in capsys.readouterr().err


def test_vllm_that_stops_is_one_clear_line(tmp_path: Path):
    """The environment is ours, which has no vLLM."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    (tmp_path / ".ready").write_text(REQUIREMENTS.read_text())
    with pytest.raises(DraftError, match="vLLM stopped with exit code 1"):
        ask_vllm(tmp_path, {})


def test_an_environment_is_installed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    commands: list[list[str]] = []
    codes = [0, 1]

    def run(command: list[str], **_options: Any) -> SimpleNamespace:
        commands.append(command)
        return SimpleNamespace(returncode=codes.pop(0) if codes else 0)

    monkeypatch.setattr("benchmarks.vllm_environment.subprocess.run", run)
    with pytest.raises(DraftError, match="cannot make vLLM's environment"):
        ensure(tmp_path)
    assert len(commands) == 2
    assert ensure(tmp_path) == tmp_path / "bin" / "python"
    assert len(commands) == 5
    assert "--no-deps" in commands[-1]
    ensure(tmp_path)
    assert len(commands) == 5
