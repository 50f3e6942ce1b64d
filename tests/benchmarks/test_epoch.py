"""An epoch on redrafts beside one of SFT: as many blocks, and FLOPs of the steps and of the redraft."""

import json
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from benchmarks import epoch, train
from draftopd.checkpoints.native import Restored
from draftopd.console import quiet
from draftopd.data.sources import TinyPrompts
from draftopd.decoding.ledger import Ledger
from draftopd.decoding.settings import Decoding
from draftopd.drafters.base import Drafter
from draftopd.errors import DraftError
from draftopd.target.model import Target
from draftopd.trace import Trace

BATCHING = {"_target_": "draftopd.training.datamodule.Batching", "batch_size": 4, "micro_batch_size": 3}
LIMITS = {"enable_thinking": None, "max_prompt_length": 512}
ARGS = Namespace(epoch_texts=9, epoch_reuse=[1, 2], epoch_objective="cross_entropy", tokens=12)


def restored(target: Target, drafter: Drafter) -> Restored:
    config = OmegaConf.create({"data": {"batching": BATCHING | LIMITS}, "trainer": {"precision": "32-true"}})
    return Restored(target, drafter, TinyPrompts(train=9), Decoding(max_new_tokens=24), config)


@pytest.mark.parametrize("name", ["eager_drafter", pytest.param("eager_eagle", marks=pytest.mark.slow)])
def test_both_epochs_train_on_as_many_blocks(request: pytest.FixtureRequest, target: Target, tmp_path: Path, name: str):
    quiet()
    drafter: Drafter = request.getfixturevalue(name)
    run, before = restored(target, drafter), {k: v.clone() for k, v in drafter.state_dict().items()}
    kinds, counts = epoch.prepare(run, ARGS, str(tmp_path))
    rounds = [epoch.one_round(run, kinds, "cross_entropy", number) for number in range(2)]
    assert all(torch.equal(value, before[k]) for k, value in drafter.state_dict().items())
    assert rounds[0]["order"] != rounds[1]["order"]
    assert rounds[0]["systems"].keys() == rounds[1]["systems"].keys() == {"on_policy", "on_policy_reuse_2", "sft"}

    on_policy, sft = counts["on_policy"], counts["sft"]
    assert counts["on_policy_reuse_2"] == on_policy
    assert (on_policy["texts"], on_policy["steps"]) == (sft["texts"], sft["steps"]) == (8, 2)
    assert abs(on_policy["blocks"] - sft["blocks"]) <= 4  # half a block in each text
    assert sft["labelled"] == sft["rows"]  # no block of a text goes over its end

    ledger = Ledger()
    for result in kinds["on_policy"].data.results:
        ledger.redraft(target, drafter, result.trace)
    done = rounds[1]["systems"]
    flops = {name: system["flops"] for name, system in done.items()}
    assert flops["on_policy"] - flops["on_policy_reuse_2"] == pytest.approx(ledger.training_flops / 2)
    assert rounds[0]["ratios"]["on_policy_flops"] == flops["on_policy"] / flops["sft"]
    assert done["on_policy"]["phases"].keys() == {"redraft", "train"}
    assert done["sft"]["phases"].keys() == {"train"}
    ratios = epoch.summary(rounds)["ratios"]
    assert ratios["on_policy_flops"]["q1"] == ratios["on_policy_flops"]["q3"]  # the same traces in every round


def test_too_few_training_prompts_are_refused(target: Target, eager_drafter: Drafter, tmp_path: Path):
    few = Namespace(**{**vars(ARGS), "epoch_texts": 10})
    with pytest.raises(DraftError, match="has 9 prompts: lower --epoch-texts=10"):
        epoch.prepare(restored(target, eager_drafter), few, str(tmp_path))


def test_sft_takes_the_number_of_anchors_that_comes_nearest():
    def text(response: int, blocks: int) -> Trace:
        anchors = torch.arange(3, 3 + blocks)
        return Trace(torch.zeros(3 + response, dtype=torch.long), 3, anchors, torch.zeros(blocks, 2), anchors)

    assert epoch.as_many([text(9, 4), text(9, 2)]) == 3
    assert epoch.as_many([text(9, 5), text(3, 1)]) == 4  # the short text has two places
    assert epoch.as_many([text(9, 8), text(3, 2)]) == 8


def test_parts_that_are_not_measured_again_keep_the_header_of_their_run(tmp_path: Path):
    file = tmp_path / "train.json"
    assert train.earlier(file, {"commit": "new"}, ["epoch"]) == {}
    old = {"step": {"minutes": 1}, "redraft": {"minutes": 2, "run": {"commit": "older"}}, "epoch": {"minutes": 3}}
    file.write_text(json.dumps({"commit": "old", "wanted": {}, "parts": old}))
    found = train.earlier(file, {"commit": "new"}, ["epoch"])
    assert found == {"step": {"minutes": 1, "run": {"commit": "old"}}, "redraft": old["redraft"]}


def test_ratios_are_printed_with_what_they_are_to_be(capsys: pytest.CaptureFixture[str]):
    ratios = {"on_policy_seconds": {"median": 1.25, "q1": 1.2, "q3": 1.4}}
    train.report(train.ratios({"epoch": {"summary": {"ratios": ratios}}, "growth": {"points": []}}))
    line, last = capsys.readouterr().out.splitlines()
    assert line.split() == ["on_policy_epoch_vs_sft_epoch", "1.250", "[1.200,", "1.400]", "wanted", "<=", "1.3"]
    assert json.loads(last) == {"on_policy_epoch_vs_sft_epoch": 1.25}
