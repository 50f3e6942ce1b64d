"""States of a rollout phase: the same values in memory and in memory-mapped files, of which nothing is left."""

from pathlib import Path

import pytest
import torch

from draftopd.data.storage import SpillStore
from draftopd.decoding.rollout import rollout
from draftopd.decoding.settings import Decoding
from draftopd.drafters.dflash import DFlash
from draftopd.errors import DraftError
from draftopd.target.model import Target
from draftopd.trace import collate_rollouts
from pair import PROMPTS, full_disk


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_file_gives_back_the_values_and_is_gone(tmp_path: Path, dtype: torch.dtype):
    tensor = torch.randn(7, 5).to(dtype).t()  # not contiguous
    stored = SpillStore(0.0, tmp_path / "new" / "folder")(tensor)
    assert torch.equal(stored, tensor)
    assert stored.dtype == dtype
    assert not list((tmp_path / "new" / "folder").iterdir())


def test_memory_is_taken_up_to_the_budget(tmp_path: Path):
    store = SpillStore(100 / 2**30, tmp_path)
    tensors = [torch.full((10,), float(i)) for i in range(4)]  # of 40 bytes
    assert [store(t) is t for t in tensors] == [True, True, False, False]
    small = torch.zeros(5)
    assert store(small) is small  # exactly what is left
    assert store(small) is not small
    nothing = torch.zeros(0, 3)
    assert store(nothing) is nothing


def test_gradients_do_not_depend_on_where_a_phase_is_stored(target: Target, eager_drafter: DFlash, tmp_path: Path):
    gradients = []
    for store in (torch.Tensor.cpu, SpillStore(0.0, tmp_path), SpillStore(1e-5, tmp_path)):
        results = rollout(target, eager_drafter, PROMPTS, Decoding(24), keep_states=True, store=store)
        batch = collate_rollouts(results)
        assert batch.target_hidden is not None
        drafted = eager_drafter(batch, target.embed)[batch.valid]
        eager_drafter.zero_grad()
        (drafted - batch.target_hidden[batch.valid]).square().sum().backward()
        gradients.append([p.grad.clone() for p in eager_drafter.parameters() if p.grad is not None])
    eager_drafter.zero_grad()
    for other in gradients[1:]:
        assert all(map(torch.equal, gradients[0], other))
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_one_clear_line(tmp_path: Path):
    with full_disk(), pytest.raises(DraftError, match=r"cache_dir.*data\.keep_gib") as caught:
        SpillStore(0.0, tmp_path)(torch.zeros(1000))
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
