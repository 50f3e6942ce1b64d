"""The check of texts from two servers, without vLLM: one server stops on the way and starts again."""

import json
from pathlib import Path

import pytest
from benchmarks.serve_texts import main

from benchmarks import serve_texts, serve_training
from draftopd.target.model import Target
from fake_engine import FakeEngine


@pytest.fixture
def served(target: Target, monkeypatch: pytest.MonkeyPatch) -> list[FakeEngine]:
    engines: list[FakeEngine] = []

    class Served(FakeEngine):
        def __init__(self, python: Path, target: Target, length: int, log: Path) -> None:
            super().__init__(target, max_model_len=length)
            self.start()
            self.stop()  # it has its address now
            self.kill = self.stop
            engines.append(self)

    monkeypatch.setattr(serve_texts, "Server", Served)
    monkeypatch.setattr(serve_texts, "ensure", lambda environment: environment)
    monkeypatch.setattr(serve_texts, "smollm2", lambda folder: target)
    monkeypatch.setattr(serve_texts, "LOOK", 0.001)
    monkeypatch.setattr(serve_training, "EXPERIMENT", ("experiment=smoke/sft", "target.order=0"))
    return engines


def test_the_check_ends_with_one_json_object(served: list[FakeEngine], tmp_path: Path, capsys):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"what is {i}?"}) + "\n" for i in range(24)))
    assert main(["--prompts", str(prompts), "--limit", "16", "--tokens", "6", "--train", "8"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (report["passed"], report["texts"], report["equal"], report["wrong"]) == (True, 16, 16, [])
    assert report["server"]["engine"] == "vllm"
    assert len(served) == 2
    assert report["training"]["sft"] == {"texts": 16, "texts_equal": 16, "weights_equal": True}
    assert len({prompt for engine in served for prompt in engine.answered}) == 16
    phase = report["training"]["on_policy"]
    assert (phase["prompts"], phase["equal"], phase["differing"]) == (8, phase["traces"], [])
    assert phase["traces"] > 0


def test_texts_of_another_model_do_not_pass(served: list[FakeEngine], tmp_path: Path, capsys, monkeypatch):
    def change(choice: dict) -> None:
        choice["token_ids"][0] = 9 if choice["token_ids"][0] != 9 else 8

    monkeypatch.setattr(FakeEngine, "change", property(lambda self: change, lambda self, value: None), raising=False)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "what is 1?"}\n')
    with pytest.raises(SystemExit):
        main(["--prompts", str(prompts), "--tokens", "6"])
    assert "runs another model" in capsys.readouterr().err
