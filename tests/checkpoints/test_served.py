"""An exported folder where it is served: in transformers' `generate`, and with a layer offset past the checks."""

import pytest
import torch
from benchmarks.serve_check import drop_note, shift_layers
from benchmarks.serve_engines import by_transformers, ours

from draftopd.checkpoints.published import published, write
from draftopd.checkpoints.to_transformers import to_transformers
from draftopd.decoding.settings import Decoding
from draftopd.drafters.base import Drafter
from draftopd.drafters.dflash import DFlash
from draftopd.drafters.dspark import DSpark
from draftopd.drafters.eagle3 import Eagle3
from draftopd.errors import DraftError
from draftopd.target.model import Target
from pair import PROMPTS, fit_texts
from published_folders import LAYOUTS

FEW, TOKENS = PROMPTS[:2], 24
FOLDERS = [
    pytest.param(kind, layout, marks=pytest.mark.slow if layout == "speculators" else [])
    for kind in LAYOUTS
    for layout in LAYOUTS[kind]
]


@pytest.mark.parametrize("layout", ["zlab", "speculators"])
def test_a_folder_serves_as_an_assistant_of_transformers(target, eager_drafter, tmp_path, layout):
    write(eager_drafter, tmp_path / "out", layout, target)
    assistant = to_transformers(published(tmp_path / "out", target), target)
    for prompt in PROMPTS:
        ids = torch.tensor([prompt])
        options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": TOKENS, "do_sample": False}
        plain = target.model.generate(ids, **options)
        drafted = target.model.generate(ids, **options, assistant_model=assistant, speculation_type="dflash")
        assert torch.equal(drafted, plain)


@pytest.fixture(scope="module")
def overfit(target: Target) -> dict[str, Drafter]:
    """They know two texts by heart. One layer higher is another layer to read, in transformers too."""
    torch.manual_seed(2)
    drafters = {
        "dflash": DFlash(target.shape, num_layers=1, block_size=5, layer_ids=[0, 1]),
        "dspark": DSpark(target.shape, num_layers=1, block_size=5, markov_rank=8, layer_ids=[0, 1]),
        "eagle3": Eagle3(target.shape, block_size=5, layer_ids=[0, 1, 2]),
    }
    for drafter in drafters.values():
        drafter.initialise(target.head)
        fit_texts(drafter, target, FEW, Decoding(TOKENS), 60)
    return drafters


@pytest.mark.parametrize(("kind", "layout"), FOLDERS)
def test_a_layer_offset_forced_through_loses_acceptance(target, overfit, tmp_path, kind, layout):
    right, wrong = tmp_path / "right", tmp_path / "wrong"
    for folder in (right, wrong):
        write(overfit[kind], folder, layout, target)
    shift_layers(wrong)
    with pytest.raises(DraftError, match="it was trained to read"):
        published(wrong, target)
    drop_note(wrong)
    good, bad = published(right, target), published(wrong, target)
    assert bad.layer_ids == tuple(i + 1 for i in good.layer_ids)
    for engine in (ours, by_transformers) if kind == "dflash" else (ours,):
        one, other = (engine(target, drafter, FEW, TOKENS) for drafter in (good, bad))
        assert one.texts == other.texts
        assert one.tau > 2.5
        assert other.tau < 0.8 * one.tau
