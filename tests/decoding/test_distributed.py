"""Several processes: how work is divided, and that a run of two ends with the weights of a run of one."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from filelock import FileLock
from mlflow import MlflowClient

from draftopd.data.texts import TextCache
from draftopd.decoding import distributed
from draftopd.decoding.ledger import Ledger
from draftopd.decoding.settings import Decoding
from draftopd.drafters.dflash import DFlash
from draftopd.drafters.eagle3 import Eagle3
from draftopd.objectives.base import CrossEntropy
from draftopd.objectives.block import DPace, ExpectedLength
from draftopd.objectives.chunked import DraftSide, TargetSide, chunked_loss
from draftopd.objectives.draft_opd import DraftOPD
from draftopd.objectives.rows import flatten
from draftopd.target.model import Target
from draftopd.trace import no_blocks
from draftopd.training.datamodule import Batching, DraftDataModule
from pair import EAGLE_LAYERS, PROMPTS
from runs import called

STRATEGIES = {  # name -> (trainer's precision, largest difference of a weight, and relative one of a metric)
    "ddp": ("64-true", 1e-8),
    "fsdp2": ("32-true", 1e-5),  # Lightning takes no 64-true there
}
WORDS = [
    "budget.epochs=4",  # 5 steps each
    "data.batching.batch_size=3",  # two texts for one process, one or two for the other
    "++data.batching.micro_batch_size=1",
    "data.decoding.max_new_tokens=12",
    "++module.gradient_clip=0.05",  # below the norms that occur: the clipping must see the whole gradient
    "trainer.check_val_every_n_epoch=4",
    "++texts.features_dtype=null",
    "test.speedup_prompts=1",
    "callbacks.speedup.prompts=1",
]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_processes_end_with_the_weights_of_one(command, tmp_path: Path, strategy: str):
    """SFT, then Draft-OPD from it, 20 optimizer steps each."""
    precision, tolerance = STRATEGIES[strategy]
    words = ["experiment=smoke", f"++trainer.precision={precision}", *WORDS]
    assert command(*words, "hydra.run.dir=one") == 0
    several = [f"trainer={strategy}", "trainer.devices=2", "trainer.accelerator=cpu", "hydra.run.dir=two"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-m", "draftopd.fit", *words, *several],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("numbers: ") == 1  # only the first process reports
    client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    runs = client.search_runs([client.get_experiment_by_name("draftopd").experiment_id])
    assert sorted(called(r) for r in runs) == sorted(["smoke", "sft", "draft_opd"] * 2)
    assert {r.info.status for r in runs} == {"FINISHED"}
    held_out: dict[str, list[dict[str, float]]] = {}
    for logged in runs:  # every process must log the same metric under the same name
        accepted = {k: v for k, v in logged.data.metrics.items() if k.startswith("val/") and "accept" in k}
        held_out.setdefault(called(logged), []).append(accepted)
    for name in ("sft", "draft_opd"):
        one, two = held_out[name]
        assert one["val/acceptance_length"] >= 1
        assert one == pytest.approx(two, rel=max(tolerance, 1e-6))
    for stage in ("sft", "draft_opd"):
        one, two = (
            torch.load(tmp_path / folder / stage / "checkpoints" / "last.ckpt", weights_only=True)
            for folder in ("one", "two")
        )
        assert one["global_step"] == two["global_step"] == 20
        for name, value in one["state_dict"].items():
            torch.testing.assert_close(two["state_dict"][name], value, atol=tolerance, rtol=0)
        assert two["ledger"]["flops"]["train"] == pytest.approx(one["ledger"]["flops"]["train"])
    one, two = (json.loads((tmp_path / folder / "results.json").read_text())["results"] for folder in ("one", "two"))
    for first, second in zip(one, two, strict=True):
        assert [a["responses"] for a in first["answers"]] == [a["responses"] for a in second["answers"]]


@pytest.mark.parametrize("members", [0, 1, 2, 3, 7, 8])
@pytest.mark.parametrize("by_turns", [True, False])
def test_every_process_has_as_many_micro_batches_and_every_text_one_process(monkeypatch, members: int, by_turns: bool):
    data = DraftDataModule.__new__(DraftDataModule)
    data.__dict__.update(batching=Batching(micro_batch_size=2))
    monkeypatch.setattr(distributed, "count", lambda: 3)
    owners = None if by_turns else [0 if i < 5 else 2 for i in range(members)]
    parts = []
    for rank in range(3):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        parts.append(list(data.micro(list(range(members)), owners)))
    assert len({len(own) for own in parts}) == 1
    assert sorted(i for own in parts for part in own for i in part) == list(range(members))
    assert all(len(part) <= 2 for own in parts for part in own)


OBJECTIVES = [CrossEntropy(decay=4.0), DraftOPD(), DPace(), ExpectedLength()]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda objective: type(objective).__name__)
@pytest.mark.parametrize("kind", ["dflash", "eagle3"])
def test_an_empty_share_gives_every_parameter_a_gradient_of_zero(target: Target, kind: str, objective):
    """DDP waits for all of them."""
    if kind == "dflash":
        drafter: DFlash | Eagle3 = DFlash(target.shape, num_layers=2, block_size=4)
    else:
        drafter = Eagle3(target.shape, block_size=4, layer_ids=EAGLE_LAYERS)
    size = target.shape.hidden_size
    batch = no_blocks(drafter.num_draft_tokens, len(drafter.layer_ids) * size, size)
    head, rows = drafter.head(target.head), flatten(batch, None)
    draft = DraftSide(head, drafter(batch, target.embed)[batch.valid], head.trained)
    verified = TargetSide(target.head(), batch.target_hidden[batch.valid])
    coefficients = {name: torch.tensor(0.01) for name in objective.coefficients}
    loss, terms = chunked_loss(objective, rows, draft, verified, coefficients, 64)
    loss.backward()
    assert all(value.item() == 0 for value in (loss, *terms.values()))
    for name, parameter in drafter.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name


def test_the_ledger_of_several_processes_counts_each_cost_once():
    ledger = Ledger()
    for _ in range(2):
        ledger.flops["train"] += 10.0
        ledger.tokens["verify"] += 1.0
        ledger.share(lambda own: own * 3)  # two others have counted the same
    assert (dict(ledger.flops), dict(ledger.tokens)) == ({"train": 60.0}, {"verify": 6.0})
    resumed = Ledger()
    resumed.load_state_dict(ledger.state_dict())
    resumed.share(lambda own: own * 3)  # what was resumed is everybody's already
    assert resumed.training_flops == 60.0


def test_shares_come_back_in_order(monkeypatch):
    items, shares = list(range(7)), []
    monkeypatch.setattr(distributed, "count", lambda: 3)
    for rank in range(3):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        shares.append(distributed.own(items))

    def all_gather_object(out, mine):
        out[:] = shares

    monkeypatch.setattr(distributed, "dist", SimpleNamespace(all_gather_object=all_gather_object))
    assert distributed.gather(shares[0]) == items


def test_a_shard_that_another_process_writes_comes_last(target: Target, tmp_path: Path):
    texts = TextCache(str(tmp_path), None, shard_size=2).open(target, PROMPTS, Decoding(max_new_tokens=4), ())
    with FileLock(tmp_path / "texts" / f"{texts.folder.name}-00000.lock"):
        writer = threading.Thread(target=texts.write, args=(len(PROMPTS),))
        writer.start()
        writer.join(timeout=1.0)
        assert writer.is_alive()
        assert sorted(p.name for p in texts.folder.glob("*.safetensors")) == ["00001.safetensors", "00002.safetensors"]
    writer.join(timeout=30.0)
    assert len(list(texts.folder.glob("*.safetensors"))) == 3
