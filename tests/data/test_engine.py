"""Texts from servers are the target's own, whatever fails on the way, and each is asked for once."""

import json
import logging
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from draftopd.data import servers
from draftopd.data.engine import WRITTEN_BY, Engine
from draftopd.data.texts import TextCache, Texts
from draftopd.decoding.rollout import rollout
from draftopd.decoding.settings import Decoding
from draftopd.errors import DraftError
from draftopd.target import load
from draftopd.target.model import Target
from fake_engine import FakeEngine
from pair import PROMPTS, SIZES

DECODING = Decoding(max_new_tokens=12)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FIRST_DELAY", "LOOK"):
        monkeypatch.setattr(servers, name, 0.01)


@pytest.fixture(scope="module")
def other() -> Target:
    """The same tokenizer and sizes, other weights."""
    return load.tiny({"model_type": "llama", **SIZES}, seed=1)


def opened(folder: Path, target: Target, *urls: str, decoding: Decoding = DECODING, **settings: Any) -> Texts:
    writer = Engine(urls=list(urls), **{"concurrency": 2, "patience": 30.0, **settings})
    return TextCache(str(folder), "float32", shard_size=2, writer=writer).open(target, PROMPTS, decoding, (1, 3))


def require_own(texts: Texts, target: Target) -> None:
    """They are those of plain decoding here, and so are their features."""
    wanted = rollout(target, None, PROMPTS, DECODING, keep_states=True, layer_ids=(1, 3))
    for i, result in enumerate(wanted):
        assert torch.equal(texts[i].tokens, result.trace.tokens)
        assert texts[i].prompt_length == len(PROMPTS[i])
        torch.testing.assert_close(texts.features(i), result.features, atol=1e-4, rtol=1e-3)


def test_texts_are_the_targets_own_and_are_read_when_the_server_is_gone(target: Target, tmp_path: Path):
    with FakeEngine(target) as engine:
        texts = opened(tmp_path, target, f"{engine.url}/v1/")
        require_own(texts, target)
    assert len(engine.requests) == len(PROMPTS)
    assert {name: engine.requests[0][name] for name in ("temperature", "max_tokens", "ignore_eos", "model")} == {
        "temperature": 0.0,
        "max_tokens": 12,
        "ignore_eos": True,
        "model": "tiny",
    }
    assert engine.requests[0]["stop_token_ids"] == target.stop_tokens.tolist()
    require_own(opened(tmp_path, target, "http://nowhere"), target)
    facts = {"engine": "vllm", "version": "0.32.0", "model": "tiny", "dtype": None}
    assert json.loads((texts.folder / WRITTEN_BY).read_text()) == facts
    assert not list(texts.folder.glob("*.jsonl"))
    local = TextCache(str(tmp_path), "float32", shard_size=2).open(target, PROMPTS, DECODING, (1, 3))
    assert local.folder != texts.folder


@pytest.mark.parametrize("fault", ["500", "drop", "cut", "hang"])
def test_requests_that_fail_are_made_again(target: Target, tmp_path: Path, fault: str, caplog):
    faulty = (1,) if fault == "hang" else (1, 2, 4)
    with FakeEngine(target, lambda number, body: fault if number in faulty else None) as engine:
        require_own(opened(tmp_path, target, engine.url, timeout=0.5 if fault == "hang" else 30.0), target)
    answered = set(engine.answered) if fault == "hang" else engine.answered  # a busy machine may be slow by itself
    assert sorted(answered) == sorted(map(tuple, PROMPTS))
    said = [record.message for record in caplog.records]
    assert "trying again" in said[0]
    assert any("answers again" in line for line in said)


def test_one_of_two_servers_dies_half_way_and_comes_back(target: Target, tmp_path: Path):
    asked, back = threading.Event(), threading.Event()

    def slow(number: int, body: dict[str, Any]) -> None:
        """The one that stays: it waits for the other to be back, so that there is a text left for that one."""
        assert back.wait(60)

    def dies(number: int, body: dict[str, Any]) -> str | None:
        asked.set()
        return None if back.is_set() else "drop"

    def restart() -> None:
        assert asked.wait(60)
        dying.stop()
        dying.start()
        back.set()

    with FakeEngine(target, slow) as staying, FakeEngine(target, dies) as dying:
        thread = threading.Thread(target=restart)
        thread.start()
        require_own(opened(tmp_path, target, staying.url, dying.url, concurrency=1), target)
        thread.join()
    assert sorted([*staying.answered, *dying.answered]) == sorted(map(tuple, PROMPTS))


def test_a_killed_client_goes_on_where_it_was(target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with FakeEngine(target, lambda number, body: "400" if number == 4 else None) as engine:
        texts = opened(tmp_path, target, engine.url, concurrency=1)
        with pytest.raises(DraftError, match=r"refuses: HTTP 400 .*this went wrong"):
            texts.write(5)
    assert len(engine.answered) == 3
    (cut,) = texts.folder.glob("00001.jsonl")
    with cut.open("a") as file:  # as a kill leaves it
        file.write('{"text": 3, "ids": [5, 6')
    with FakeEngine(target) as later:
        require_own(opened(tmp_path, target, later.url), target)
    assert sorted([*engine.answered, *later.answered]) == sorted(map(tuple, PROMPTS))


@pytest.mark.parametrize("decoding", [DECODING, Decoding(12, temperature=0.7)])
def test_another_model_is_refused(target: Target, other: Target, tmp_path: Path, decoding: Decoding):
    with FakeEngine(target) as first, FakeEngine(other) as second:
        texts = opened(tmp_path, target, second.url, decoding=decoding)
        with pytest.raises(DraftError, match=rf"{second.url} runs another model.*serve the same weights"):
            texts.write(2)
        assert not list(texts.folder.glob("*.safetensors"))
        assert not list(texts.folder.glob("*.jsonl"))
        opened(tmp_path, target, first.url, decoding=decoding).write(2)


def test_another_model_after_a_restart_is_refused(target: Target, other: Target, tmp_path: Path):
    def behave(number: int, body: dict[str, Any]) -> str | None:
        if number == 3:
            engine.target = other
        return "drop" if number == 3 else None

    with FakeEngine(target, behave) as engine:
        texts = opened(tmp_path, target, engine.url, concurrency=1, check=1)
        with pytest.raises(DraftError, match="runs another model"):
            texts.write(5)


def test_a_tie_is_named(target: Target, tmp_path: Path, caplog):
    def change(choice: dict[str, Any]) -> None:
        choice["token_ids"][2] = 7 if choice["token_ids"][2] != 7 else 8

    with FakeEngine(target, change=change) as engine, caplog.at_level(logging.WARNING):
        opened(tmp_path, target, engine.url, tie=1000.0, check=1).write(2)
    (record,) = caplog.records
    assert "a tie, token 2: " in record.message
    assert record.message.count("with ") == 2


def test_sampled_texts_have_seeds_of_their_own(target: Target, tmp_path: Path):
    decoding = Decoding(12, temperature=0.7, top_p=0.9, seed=3)
    with FakeEngine(target) as engine:
        opened(tmp_path, target, engine.url, decoding=decoding).write(5)
    assert len({request["seed"] for request in engine.requests}) == len(PROMPTS)
    assert {(request["top_p"], request["top_k"], request["min_p"]) for request in engine.requests} == {(0.9, -1, 0.0)}


CHANGES = {
    "no ids": (lambda choice: choice.pop("token_ids"), "returns no token ids: it must know return_token_ids"),
    "another prompt": (lambda choice: choice["prompt_token_ids"].insert(0, 1), "read another prompt"),
    "too short": (lambda choice: choice["token_ids"].pop(), "ends after .* and not with a stop token"),
    "nothing": (lambda choice: choice["token_ids"].clear(), "ends after 0 of 12 tokens"),
    "too long": (lambda choice: choice["token_ids"].extend([5] * 12), "tokens, and the limit is 12|goes on after stop"),
    "no token": (lambda choice: choice["token_ids"].insert(0, 1000), "holds token 1000"),
    "beyond its end": (lambda choice: choice["token_ids"].insert(0, 1), "goes on after stop token 1"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_what_is_no_response_of_the_target_is_refused(target: Target, tmp_path: Path, case: str):
    change, said = CHANGES[case]
    with FakeEngine(target, change=change) as engine:
        texts = opened(tmp_path, target, engine.url)
        with pytest.raises(DraftError, match=said):
            texts.write(1)
    assert not list(texts.folder.glob("*.jsonl"))


def test_a_server_that_cannot_serve_is_refused_at_once(target: Target, tmp_path: Path):
    with FakeEngine(target, max_model_len=20) as engine:
        with pytest.raises(DraftError, match="--max-model-len 23"):
            opened(tmp_path, target, engine.url).write(5)
        with pytest.raises(DraftError, match=r"serves no model big \(it has tiny\)"):
            opened(tmp_path, target, engine.url, model="big").write(5)
    assert not engine.requests


def test_no_server_is_one_clear_error_after_a_while(target: Target, tmp_path: Path):
    with FakeEngine(target) as engine:
        pass
    with pytest.raises(DraftError, match=rf"no server answers \({engine.url}: Connection.*run again"):
        opened(tmp_path, target, engine.url, patience=0.0).write(1)


def test_the_engine_stays_the_same(target: Target, tmp_path: Path):
    with FakeEngine(target) as first, FakeEngine(target, version="0.33.0") as second:
        opened(tmp_path, target, first.url).write(2)
        with pytest.raises(DraftError, match=r"0\.33\.0.*were written by.*0\.32\.0.*set cache_dir"):
            opened(tmp_path, target, second.url).write(4)
