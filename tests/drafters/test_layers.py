"""What drafters are made of."""

import pytest
import torch
from torch import nn

from draftopd.drafters.layers import RMSNorm


def test_norms_of_mixed_precision_are_torchs_and_do_not_warn(recwarn: pytest.WarningsRecorder):
    norm, rows = RMSNorm(16, 1e-5), torch.randn(3, 16, dtype=torch.bfloat16)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    with torch.autocast("cpu", torch.bfloat16):
        found = norm(rows)
    assert not recwarn.list
    exact = nn.functional.rms_norm(rows.float(), (16,), norm.weight, 1e-5)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, exact.bfloat16())
