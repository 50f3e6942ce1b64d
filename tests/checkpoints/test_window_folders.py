"""Drafters with a sliding window as published folders: which layout has it, and that its meaning comes back."""

import pytest
import torch

from draftopd.checkpoints.published import default_layout, load_published, read, write
from draftopd.checkpoints.to_transformers import to_transformers
from draftopd.drafters.base import Drafter
from draftopd.errors import DraftError
from draftopd.target.model import Target
from draftopd.trace import Trace, text_blocks
from published_folders import LAYOUTS, changed, config_of, files, make, put, refused, together, warned

WINDOW = 6
LAYER = "transformer_layer_config"


@pytest.fixture(scope="module")
def windowed(target: Target, tmp_path_factory: pytest.TempPathFactory):
    """Folders by the kind of drafter."""
    place = tmp_path_factory.mktemp("windows")
    for kind in LAYOUTS:
        drafter = make(kind, target, 40, WINDOW)
        write(drafter, place / kind, default_layout(drafter), target, "org/target")
    return {folder.name: folder for folder in place.iterdir()}


def block_logits(drafter: Drafter, target: Target) -> torch.Tensor:
    """Of blocks so late in a text that the window hides its beginning."""
    tokens = torch.randint(5, 40, (24,), generator=torch.Generator().manual_seed(3))
    text = Trace(tokens, 4, torch.zeros(0).long(), torch.zeros(0, 4).long(), torch.zeros(0).long())
    batch = text_blocks([text], [torch.tensor([6, 12, 18])], drafter.num_draft_tokens)
    drafter = target.adopt(drafter)
    with torch.no_grad(), drafter.evaluating():
        return drafter.head(target.head)(drafter(target.replay(batch, drafter.layer_ids), target.embed))


@pytest.mark.parametrize("kind", LAYOUTS)
def test_a_window_goes_there_and_back(target, windowed, tmp_path, kind):
    drafter, folder = make(kind, target, 40, WINDOW), windowed[kind]
    found = read(folder, target)
    assert (found.layout, found.drafter.window, found.warnings) == ("speculators", WINDOW, [])
    assert torch.equal(block_logits(found.drafter, target), block_logits(drafter, target))
    assert not torch.equal(block_logits(make(kind, target, 40), target), block_logits(drafter, target))
    load_published(make(kind, target, 40, WINDOW), folder, target)
    with pytest.raises(DraftError, match="window 6, not None"):
        load_published(make(kind, target, 40), folder, target)
    write(found.drafter, tmp_path / "again", "speculators", target, "org/target")
    assert files(tmp_path / "again") == files(folder)


@pytest.mark.parametrize("kind", LAYOUTS)
def test_it_stands_where_vllm_looks_and_blocks_see_both_ways(windowed, kind):
    config = config_of(windowed[kind])
    layer = config[LAYER]
    assert layer["sliding_window"] == WINDOW
    assert set(layer["layer_types"]) == {"sliding_attention"}
    assert kind == "eagle3" or (layer["use_sliding_window"] and config["sliding_window_non_causal"])
    assert ("is_causal" in layer) == (kind == "dspark")


@pytest.mark.parametrize("kind", LAYOUTS)
def test_a_layout_without_windows_refuses_and_names_the_one_that_has_them(target, tmp_path, kind):
    with pytest.raises(DraftError, match=r"window=6.*layout=speculators"):
        write(make(kind, target, None, WINDOW), tmp_path / "folder", LAYOUTS[kind][0], target)
    assert not (tmp_path / "folder").exists()


def test_transformers_gets_no_drafter_with_a_window(target):
    with pytest.raises(DraftError, match="window=6"):
        to_transformers(make("dflash", target, None, WINDOW), target)


FAULTS = {
    "no size": ("dflash", put(LAYER, "sliding_window"), "without a sliding_window that counts"),
    "not used": ("dflash", put(LAYER, "use_sliding_window", value=False), "without a sliding_window that counts"),
    "some layers": (
        "dspark",
        put(LAYER, "layer_types", value=["sliding_attention", "full_attention"]),
        "layer_types is ['sliding_attention', 'full_attention']",
    ),
    "causal blocks": ("dflash", put("sliding_window_non_causal", value=False), "non_causal is False beside sliding"),
    "nothing said": ("dspark", put("sliding_window_non_causal"), "non_causal is None beside sliding"),
    "shorter than a block": ("eagle3", put(LAYER, "sliding_window", value=4), "window 4 must be at least"),
    "another": ("eagle3", put(LAYER, "sliding_window", value=7), "trained to read"),
    "dropped": ("dflash", put(LAYER, "layer_types", value=["full_attention"] * 2), "trained to read"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_window_is_refused_by_name(target, windowed, tmp_path, fault):
    kind, change, expected = FAULTS[fault]
    refused(changed(windowed[kind], tmp_path, change), target, expected)


def test_vllm_needs_a_key_of_its_own_for_dspark(target, windowed, tmp_path):
    folder = changed(windowed["dspark"], tmp_path, together(put(LAYER, "is_causal")))
    warned(windowed["dspark"], folder, target, "no is_causal false")
