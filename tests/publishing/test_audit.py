"""The served audit finds a drafter that is served otherwise than it was trained, and names ties."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.serve_check import drop_note, shift_layers

from draftopd.checkpoints.published import default_layout, published, write
from draftopd.decoding.settings import Decoding
from draftopd.drafters.base import Drafter
from draftopd.drafters.dflash import DFlash
from draftopd.drafters.eagle3 import Eagle3
from draftopd.errors import DraftError
from draftopd.evaluation.measure import roll
from draftopd.publishing import asking
from draftopd.publishing.asking import ask
from draftopd.publishing.audit import Audit, audit, from_accepted, request
from draftopd.target import load
from draftopd.target.model import Target
from draftopd.training import diagnostics
from draftopd.training.diagnostics import ServedAudit
from fake_engine import FakeEngine
from pair import PROMPTS, fit_texts
from runs import UNTESTED

COMMAND = ["serve", "{target}", "--drafter={drafter}", "--port={port}", "--length={length}"]
TOKENS = 16


@pytest.fixture(scope="module")
def lying(target: Target, tmp_path_factory: pytest.TempPathFactory) -> Target:
    """The tiny target, loaded from a folder that engines could load."""
    folder = tmp_path_factory.mktemp("target")
    target.model.save_pretrained(folder)
    target.tokenizer.save_pretrained(folder)
    return load.hf(str(folder))


@pytest.fixture(scope="module", params=["dflash", "eagle3"])
def drafter(request: pytest.FixtureRequest, lying: Target) -> Drafter:
    torch.manual_seed(2)
    drafters = {
        "dflash": lambda: DFlash(lying.shape, num_layers=1, block_size=5, layer_ids=[0, 1]),
        "eagle3": lambda: Eagle3(lying.shape, block_size=5, layer_ids=[0, 1, 2]),
    }
    made: Drafter = drafters[request.param]()
    made.initialise(lying.head)
    fit_texts(made, lying, PROMPTS, Decoding(TOKENS), 40)
    return made


@pytest.fixture
def engine(lying: Target, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A command that serves drafts of the exported folder, in this process; what becomes of its responses."""
    changes: list[Any] = []

    class Process(asking.Process):
        def start(self) -> None:
            values = dict(word.removeprefix("--").split("=", 1) for word in self.command if "=" in word)
            assert self.command[1] == lying.model.config.name_or_path
            change = changes[0] if changes else lambda choice: None
            length = int(values["length"])
            self.fake = FakeEngine(
                lying, change=change, max_model_len=length, drafter=published(values["drafter"], lying)
            )
            self.fake.port = int(values["port"])
            self.fake.start()

        @property
        def over(self) -> bool:
            return False

        def kill(self) -> None:
            self.fake.stop()

    monkeypatch.setattr(asking, "Process", Process)
    return changes


def audited(target: Target, drafter: Drafter, folder: Path, log: Path) -> Audit:
    answers = ask(COMMAND, request(target, drafter, folder, PROMPTS, TOKENS), 30.0, log)
    return audit(target, drafter, PROMPTS, from_accepted(PROMPTS, answers))


def test_it_passes_as_exported_and_fails_with_a_wrong_layer_offset(engine, lying, drafter, tmp_path: Path):
    right, wrong = tmp_path / "right", tmp_path / "wrong"
    for folder in (right, wrong):
        write(drafter, folder, default_layout(drafter), lying)
    found = audited(lying, drafter, right, tmp_path / "log")
    assert (found.passed, found.same, found.ties) == (True, len(PROMPTS), [])
    assert found.tau == found.tau_served > 1.2
    shift_layers(wrong)
    drop_note(wrong)
    found = audited(lying, drafter, wrong, tmp_path / "log")
    assert not found.passed
    assert found.tau_served != found.tau
    assert any("no tie" in line for line in found.wrong)


def test_a_step_that_differs_is_named_and_is_a_tie_where_logits_are_close(lying, drafter):
    traces = roll(lying, drafter, PROMPTS, Decoding(TOKENS))
    answers = [
        {"tokens": t.tokens[t.prompt_length :].tolist(), "accepted": [c - 1 for c in t.committed.tolist()]}
        for t in traces
    ]
    i, step = next((i, k) for i, t in enumerate(traces) for k, c in enumerate(t.committed.tolist()) if c > 1)
    answers[i]["accepted"][step] -= 1  # the engine's own draft at the last slot was another
    served = from_accepted(PROMPTS, answers)
    found = audit(lying, drafter, PROMPTS, served)
    (unlike,) = found.steps
    assert (unlike.response, unlike.step, unlike.served) == (i, step, unlike.ours - 1)
    assert unlike.gap > 0
    assert f"response {i}, verification {step} commits {unlike.served} tokens and not {unlike.ours}" in found.wrong[0]
    loose = audit(lying, drafter, PROMPTS, served, tie=unlike.gap)
    assert loose.passed
    assert "a tie" in loose.ties[0]
    other = replace(served, texts=[[*text[:-1], 7 if text[-1] != 7 else 8] for text in served.texts])
    assert any("is not the target's text" in line for line in audit(lying, drafter, PROMPTS, other).wrong)


@pytest.fixture
def words(lying: Target) -> Sequence[str]:
    where = ("target=hf", f"target.path={lying.model.config.name_or_path}")
    served = ("callbacks.served_audit.every=1", "callbacks.served_audit.prompts=3")
    quoted = ",".join(f"'{word}'" for word in COMMAND)
    return ("experiment=smoke/sft", *where, *served, f"callbacks.served_audit.command=[{quoted}]", "budget.epochs=2")


def spoil(choice: dict[str, Any]) -> None:
    choice["token_ids"][0] = 9 if choice["token_ids"][0] != 9 else 8


def test_a_run_audits_what_it_exports_and_stops_where_the_engine_differs(
    engine, words, command, capsys, monkeypatch: pytest.MonkeyPatch
):
    """After its first epoch it is served as it is, after the second by an engine that writes otherwise."""
    own, seen = ServedAudit._fault, list[dict[str, float]]()

    def fault(self: ServedAudit, trainer: Any, found: Audit) -> str | None:
        engine.append(spoil)
        return own(self, trainer, found)

    monkeypatch.setattr(ServedAudit, "_fault", fault)
    monkeypatch.setattr(diagnostics, "log", lambda trainer, values: seen.append(values))
    assert command(*words, *UNTESTED, "callbacks.served_audit.on_difference=stop") == 2
    said = capsys.readouterr()
    assert "served audit: 3 of 3 responses have the steps of redraft" in said.out
    assert "is not served as it was trained" in said.err
    audits = [values for values in seen if "audit/wrong" in values]
    assert [values["audit/wrong"] for values in audits] == [0.0, 1.0]


@pytest.mark.slow
def test_a_run_may_only_warn(engine, words, command, capsys):
    engine.append(spoil)
    assert command(*words, *UNTESTED) == 0
    assert "is not served as it was trained" in capsys.readouterr().out


def test_an_audit_needs_a_command(command, capsys):
    assert command("experiment=smoke/sft", "callbacks.served_audit.every=1", "logger=none") == 2
    assert "set its command" in capsys.readouterr().err


def test_commands_that_do_not_serve_are_one_clear_line(tmp_path: Path):
    asked = dict.fromkeys(("target", "drafter", "method", "dtype"), "x")
    asked |= {"num_speculative_tokens": 4, "max_model_len": 9, "prompts": [[5]], "stop": [], "max_new_tokens": 2}
    scripts = {"ends": "raise SystemExit(3)", "hangs": "import time; time.sleep(60)"}
    for command, patience, expected in (
        (["vllm", "serve"], 9.0, r"names neither \{port\} nor \{request\} and \{answer\}"),
        (["no-such-program", "{port}"], 9.0, "cannot run no-such-program"),
        ([sys.executable, "-Sc", scripts["ends"], "{port}"], 9.0, "ended with exit code 3"),
        ([sys.executable, "-Sc", scripts["hangs"], "{port}"], 0.1, "does not listen"),
        ([sys.executable, "-Sc", scripts["ends"], "{request}", "{answer}"], 9.0, "stopped with exit code 3"),
        ([sys.executable, "-Sc", scripts["hangs"], "{request}{answer}"], 0.1, "has not ended"),
    ):
        with pytest.raises(DraftError, match=expected):
            ask(command, asked, patience, tmp_path / "log")


def test_a_command_may_answer_through_files(tmp_path: Path):
    asked = {"target": "t", "drafter": "d", "method": "dflash", "dtype": "float32", "prompts": [[5]]}
    asked |= {"num_speculative_tokens": 4, "max_model_len": 9}
    script = "import sys, json; json.dump({'vllm': [json.load(open(sys.argv[1]))['prompts']]}, open(sys.argv[2], 'w'))"
    command = [sys.executable, "-Sc", script, "{request}", "{answer}"]
    assert ask(command, asked, 30.0, tmp_path / "log") == [[[5]]]
