"""The benchmark of cut blocks runs to its end on the tiny pair; nothing here looks at seconds."""

import json

import pytest
from omegaconf import OmegaConf

from benchmarks import cuts
from draftopd.checkpoints.native import Restored
from draftopd.data.sources import TinyPrompts
from draftopd.decoding.settings import Decoding
from draftopd.drafters.base import Drafter
from draftopd.target.model import Target

BATCHING = {"enable_thinking": None, "max_prompt_length": 512}
FEW = ["--prompts", "2", "--walked", "2", "--fitting", "2", "--repeats", "1", "--rounds", "2"]


@pytest.mark.parametrize("longest", [None, 6])
@pytest.mark.parametrize("name", ["eager_drafter", "eager_eagle"])
def test_all_settings_take_turns_and_write_the_same_texts(
    request, monkeypatch, target: Target, tmp_path, name, longest
):
    drafter: Drafter = request.getfixturevalue(name)
    config = OmegaConf.create({"data": {"batching": BATCHING}})
    run = Restored(target, drafter, TinyPrompts(), Decoding(max_new_tokens=12), config)
    monkeypatch.setattr(cuts, "restore", lambda _: run)
    out, sizes = tmp_path / "cuts.json", ["2", str(drafter.block_size)]
    words = [] if longest is None else ["--longest", str(longest)]
    monkeypatch.setattr("sys.argv", ["cuts", "one.ckpt", "--out", str(out), "--sizes", *sizes, *FEW, *words])
    cuts.main()

    (found,) = json.loads(out.read_text())["drafters"]
    assert found["longest"] == (longest or drafter.block_size)
    by_costs = found["by_costs"]["settings"]
    assert by_costs.keys() == {*sizes, "cut", "knowing"}
    assert len(found["by_costs"]["cuts"]["verify"]) == found["longest"]
    for batch in ("batch_1", "batch_8"):
        settings = found[batch]["settings"]
        assert settings.keys() == {*sizes, "cut"}
        assert all(of["texts_equal"] and len(of["cpu"]["rounds"]) == 2 for of in settings.values())
        assert settings["cut"]["verified_tokens"] <= found["longest"]
        ratio = found[batch]["cut_over_best_fixed"]["tokens_per_second"]
        assert ratio["best_fixed"] in sizes
        low, high = ratio["quartiles"]
        assert low <= ratio["median"] <= high
    size = sizes[1]  # what costs are added up along is what decoding does
    long = cuts.decode(run, run.encoded("test", 2), 1, int(size), None)
    assert by_costs[size]["acceptance_length"] == pytest.approx(
        cuts.summary([long], long["texts"])["acceptance_length"]
    )
