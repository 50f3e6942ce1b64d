"""Prompts on their way into a run: those left out are counted, and one that cannot be used is refused at the start."""

import pytest

from prompt_sources import write
from runs import UNTIMED, texts_of

FILES = ("experiment=smoke/sft", "prompts=jsonl", "prompts.path=train.jsonl", "prompts.val_path=val.jsonl")
WORDS = (*FILES, "prompts.test_path=test.jsonl", "budget.epochs=null", "budget.steps=1", *UNTIMED)


@pytest.fixture
def files(tmp_path):
    """40 prompts to train on, 32 of them long."""
    write(tmp_path / "train.jsonl", [{"prompt": ("long " * 30 if i % 5 else "odd: ") + str(i)} for i in range(40)])
    for name in ("val", "test"):
        write(tmp_path / f"{name}.jsonl", [{"prompt": f"{name} {i}"} for i in range(3)])
    return tmp_path


def test_a_run_says_how_many_prompts_are_too_long(command, files, capsys):
    assert command(*WORDS, "data.batching.max_prompt_length=64") == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "left out" in line]
    assert line.endswith("32 of 40 prompts left out: longer than data.batching.max_prompt_length=64 tokens")


def test_a_text_that_may_outgrow_the_targets_rope_is_refused_before_any_is_written(command, files, capsys, monkeypatch):
    monkeypatch.setattr("draftopd.target.model.longest_text", lambda config: 100)
    assert command(*WORDS, "data.decoding.max_new_tokens=16") == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "beyond 100 this target's rope depends on the longest text of a batch" in line
    assert texts_of(files) == []


def test_a_line_that_the_chat_template_refuses_is_named(command, files, capsys, monkeypatch):
    template = "{{ messages[0].content }}{% if 'odd: 20' in messages[0].content %}{{ 1 // 0 }}{% endif %}"
    monkeypatch.setattr("draftopd.data.templates.dated", lambda _: template)
    assert command(*WORDS) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: train.jsonl:21: the target's chat template or tokenizer refuses it (ZeroDiv")
    assert not list(files.rglob("*.ckpt"))
