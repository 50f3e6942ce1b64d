"""Prompts on their way into a run: those left out are counted, and one that cannot be used is refused at the start."""

import gzip
import json

import pytest
from safetensors.torch import load_file

from prompt_sources import write
from runs import UNTESTED, texts_of

FILES = ("experiment=smoke/sft", "prompts=jsonl", "prompts.path=train.jsonl", "prompts.val_path=val.jsonl")
WORDS = (*FILES, "prompts.test_path=test.jsonl", "budget.epochs=null", "budget.steps=1", *UNTESTED)


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


def test_a_conversation_is_trained_on_at_every_turn_of_the_assistant(command, files):
    """20 conversations of three turns, 5 of them held out for val: the target writes 45 texts, each at its own turn."""
    said = [("human", "q"), ("gpt", "a"), ("human", "r"), ("gpt", "b"), ("human", "s"), ("gpt", "c")]
    rows = [{"conversations": [{"from": who, "value": f"{text}{i}"} for who, text in said]} for i in range(20)]
    (files / "chats.json.gz").write_bytes(gzip.compress(json.dumps(rows).encode()))
    assert command(*WORDS, "prompts.path=chats.json.gz", "prompts.val_path=null", "data.decoding.max_new_tokens=4") == 0
    texts = [load_file(path) for folder in texts_of(files) for path in folder.glob("*.safetensors")]
    train, val = sorted((text["prompt_lengths"].tolist() for text in texts), key=len, reverse=True)
    assert (len(train), len(val)) == (45, 5)
    assert len(set(train)) > 2  # lengths of first, second and third turns
    assert min(val) > min(train)


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
