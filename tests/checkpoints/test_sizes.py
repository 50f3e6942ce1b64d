"""Published layouts and checkpoints of drafters of any permitted sizes: what is written is what is read."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from draftopd.checkpoints.published import load_published, read, write
from draftopd.checkpoints.spec import DrafterSpec
from draftopd.drafters.dflash import DFlash
from draftopd.drafters.dspark import DSpark
from draftopd.drafters.eagle3 import Eagle3
from draftopd.errors import DraftError
from draftopd.target.model import Target
from published_folders import LAYOUTS, files
from strategies import LAYERS

EPSILONS = st.sampled_from([1e-6, 1e-5, 0.1])
THETAS = st.sampled_from([1.0, 10000.0, 5e5, 1e7, 12345.678])


@st.composite
def options(draw: st.DrawFn, kind: str, *, windows: bool = False) -> dict[str, Any]:
    # Llama's configs take only numbers of heads that divide the hidden size, 32
    heads = draw(st.sampled_from([1, 2, 4] if kind == "eagle3" else [1, 2, 3, 4, 6]))
    found = {
        "block_size": draw(st.integers(2, 40)),
        "layer_ids": draw(LAYERS),
        "draft_vocab_size": draw(st.none() | st.integers(1, 99)),
        "num_attention_heads": heads,
        "num_key_value_heads": draw(st.sampled_from([n for n in (1, 2, 3, 6) if heads % n == 0])),
        "head_dim": draw(st.sampled_from([2, 4, 8, 10])),
        "intermediate_size": draw(st.integers(1, 40)),
        "rms_norm_eps": draw(EPSILONS),
        "rope_theta": draw(THETAS),
    }
    if windows:
        found["window"] = draw(st.none() | st.integers(found["block_size"], 60))
    if kind != "eagle3":
        found |= {"num_layers": draw(st.integers(1, 3)), "mask_token_id": draw(st.integers(0, 99))}
    if kind == "dspark":
        found |= {"markov_rank": draw(st.integers(1, 8)), "confidence": draw(st.booleans())}
    return found


@st.composite
def drafters(draw: st.DrawFn, kind: str, target: Target, *, windows: bool = False) -> DFlash | Eagle3:
    chosen = draw(options(kind, windows=windows))
    torch.manual_seed(0)
    drafter = {"dflash": DFlash, "dspark": DSpark, "eagle3": Eagle3}[kind](target.shape, **chosen)
    size = chosen["draft_vocab_size"]
    if size is not None:
        tokens = sorted(draw(st.sets(st.integers(0, 99), min_size=size, max_size=size)))
        drafter.set_vocabulary(torch.tensor(tokens))
    drafter.initialise(target.head)
    return drafter.to(draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16])))


def same_bits(one: DFlash | Eagle3, other: DFlash | Eagle3) -> None:
    ours, theirs = one.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(value.dtype == theirs[name].dtype and torch.equal(value, theirs[name]) for name, value in ours.items())


@pytest.mark.parametrize(("kind", "layout"), [(kind, layout) for kind in LAYOUTS for layout in LAYOUTS[kind]])
@given(st.data())
def test_any_drafter_comes_back_from_its_folder(target: Target, kind: str, layout: str, data):
    drafter = data.draw(drafters(kind, target, windows=layout == "speculators"))
    with TemporaryDirectory() as name:
        folder, again = Path(name) / "one", Path(name) / "two"
        write(drafter, folder, layout, target, "org/target")
        found = read(folder, target)
        assert found.layout == layout
        assert found.spec == DrafterSpec.of(drafter, target, "org/target")
        assert found.drafter.reads == drafter.reads
        same_bits(found.drafter, drafter)
        made = type(drafter)(target.shape, **found.spec.options()).to(next(drafter.parameters()).dtype)
        load_published(made, folder, target)
        same_bits(made, drafter)
        write(made, again, layout, target, "org/target")
        assert files(again) == files(folder)


@pytest.mark.parametrize("layout", LAYOUTS["eagle3"])
def test_heads_that_no_llama_config_takes_are_refused_and_nothing_is_written(target: Target, tmp_path: Path, layout):
    drafter = Eagle3(target.shape, 5, [0, 1, 2], num_attention_heads=3, num_key_value_heads=1)
    drafter.initialise(target.head)
    with pytest.raises(DraftError, match=r"is no config of transformers: .*not a multiple of the number of attention"):
        write(drafter, tmp_path / "one", layout, target)
    assert list(tmp_path.iterdir()) == []
