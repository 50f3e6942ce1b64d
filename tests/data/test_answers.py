"""Texts from a file of token ids: what it lacks is written down, the rest are the target's own."""

import json
from pathlib import Path

import pytest
import torch

from draftopd.data.answers import Answers, UnansweredError
from draftopd.data.texts import TextCache, Texts
from draftopd.decoding.rollout import rollout
from draftopd.decoding.settings import Decoding
from draftopd.errors import DraftError
from draftopd.target.model import Target
from pair import PROMPTS

DECODING = Decoding(max_new_tokens=12)


def opened(folder: Path, target: Target) -> Texts:
    cache = TextCache(str(folder), "float32", shard_size=2, writer=Answers(str(folder / "answers.jsonl")))
    return cache.open(target, PROMPTS, DECODING, (1,))


def answer(folder: Path, target: Target, count: int) -> None:
    """What a batch engine does with the first prompts of the file of open ones."""
    asked = [json.loads(line) for line in (folder / "answers.jsonl.todo").read_text().splitlines()][:count]
    with (folder / "answers.jsonl").open("a") as file:
        for entry in asked:
            prompt, words = entry["prompt_token_ids"], entry["sampling_params"]
            assert words["stop_token_ids"] == target.stop_tokens.tolist()
            (result,) = rollout(target, None, [prompt], Decoding(words["max_tokens"]))
            ids = result.trace.tokens[len(prompt) :].tolist()
            file.write(json.dumps({"prompt_token_ids": prompt, "token_ids": ids}) + "\n")


def test_open_prompts_are_written_down_until_all_are_answered(target: Target, tmp_path: Path):
    with pytest.raises(UnansweredError, match=r"no response to 5 of 5 prompts: they are in .*answers\.jsonl\.todo"):
        opened(tmp_path, target).write(5)
    (tmp_path / "answers.jsonl.todo").rename(tmp_path / "first")
    (tmp_path / "answers.jsonl.todo").write_text("".join((tmp_path / "first").read_text().splitlines(True)[::-1]))
    answer(tmp_path, target, 3)
    with pytest.raises(UnansweredError, match="no response to 2 of 5"):
        opened(tmp_path, target).write(5)
    answer(tmp_path, target, 5)
    texts = opened(tmp_path, target)
    wanted = rollout(target, None, PROMPTS, DECODING, keep_states=True, layer_ids=(1,))
    for i, result in enumerate(wanted):
        assert torch.equal(texts[i].tokens, result.trace.tokens)
        torch.testing.assert_close(texts.features(i), result.features, atol=1e-4, rtol=1e-3)


def test_other_answers_have_another_folder(target: Target, tmp_path: Path):
    (tmp_path / "answers.jsonl").write_text('{"prompt_token_ids": [5], "token_ids": [1]}\n')
    before = opened(tmp_path, target).folder
    (tmp_path / "answers.jsonl").write_text('{"prompt_token_ids": [5], "token_ids": [6, 1]}\n')
    assert opened(tmp_path, target).folder != before


def test_answers_of_another_model_are_refused(target: Target, tmp_path: Path):
    lines = [json.dumps({"prompt_token_ids": prompt, "token_ids": [9] * 12}) for prompt in PROMPTS]
    (tmp_path / "answers.jsonl").write_text("\n".join(lines))
    with pytest.raises(DraftError, match=r"the engine that wrote .*answers\.jsonl runs another model"):
        opened(tmp_path, target).write(5)


@pytest.mark.parametrize(
    "line", ["{", "[1]", '{"prompt_token_ids": [1]}', '{"prompt_token_ids": [1], "token_ids": ["a"]}']
)
def test_a_line_that_cannot_be_read_is_named(target: Target, tmp_path: Path, line: str):
    (tmp_path / "answers.jsonl").write_text(f'{{"prompt_token_ids": [5], "token_ids": [1]}}\n{line}\n')
    with pytest.raises(DraftError, match=r"answers\.jsonl line 2 is no object with prompt_token_ids and token_ids"):
        opened(tmp_path, target)
