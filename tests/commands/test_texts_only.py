"""`texts_only=true` writes ahead what a run reads; the run does not know who wrote."""

import torch

from draftopd.data.writers import LocalTarget
from draftopd.target.model import Target
from fake_engine import FakeEngine
from runs import UNTESTED, texts_of

WORDS = ("experiment=smoke/redraft", "target.order=0", "texts.features_dtype=null", "budget.epochs=1", *UNTESTED)


def test_a_run_on_an_engines_texts_trains_as_on_local_ones(command, target: Target, tmp_path, monkeypatch):
    assert command(*WORDS, f"texts.folder={tmp_path}/local", "hydra.run.dir=local") == 0
    monkeypatch.setattr(LocalTarget, "responses", None)
    with FakeEngine(target, max_model_len=512) as engine:
        words = (*WORDS, "texts=engine", f"texts.folder={tmp_path}/served", f"texts.writer.urls=[{engine.url}]")
        assert command(*words, "texts_only=true", "hydra.run.dir=write") == 0

    assert len(engine.requests) == 16 + 4
    assert not list((tmp_path / "write").rglob("*.ckpt"))
    assert len(texts_of(tmp_path / "served")) == 2  # train and val
    assert command(*words, "hydra.run.dir=served") == 0  # nobody serves any more
    one, two = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True) for name in ("local", "served")
    )
    assert one["state_dict"].keys() == two["state_dict"].keys()
    assert all(torch.equal(value, two["state_dict"][name]) for name, value in one["state_dict"].items())
    assert one["ledger"]["tokens"] == two["ledger"]["tokens"]


def test_all_open_prompts_are_written_down_in_one_go(command, tmp_path, capsys):
    words = ("experiment=smoke/redraft", "texts=jsonl", f"texts.writer.path={tmp_path}/answers.jsonl", "logger=none")
    assert command(*words, "texts_only=true") == 2
    assert "to 16 of 16 prompts" in (said := capsys.readouterr().err)
    assert "to 4 of 4 prompts" in said
    assert len((tmp_path / "answers.jsonl.todo").read_text().splitlines()) == 16 + 4


def test_only_the_texts_of_the_prompts_that_are_tested_are_written(command, tmp_path, capsys):
    words = ("experiment=smoke/redraft", "texts.shard_size=1", f"texts.folder={tmp_path}/texts", "logger=none")
    assert command(*words, "texts_only=true", "test.redraft=true", "test.prompts=3", "prompts.test=5") == 0
    said = capsys.readouterr().out
    assert "3 test texts" in said
    assert sorted(len(list(folder.glob("*.safetensors"))) for folder in texts_of(tmp_path / "texts")) == [3, 4, 16]
