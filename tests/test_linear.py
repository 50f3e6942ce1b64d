"""Linear layers by oneDNN beside torch's own."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from draftopd.linear import AVAILABLE, Linear, freeze, linear

served = pytest.mark.skipif(not AVAILABLE, reason="oneDNN serves x86 processors")


@pytest.mark.parametrize("rows", [(7,), (1, 7), (3, 5, 7), (0, 7)])
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_are_those_of_torch(rows: tuple[int, ...], bias: bool):
    torch.manual_seed(0)
    ours, theirs = Linear(7, 11, bias), nn.Linear(7, 11, bias)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(rows, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    direction = torch.randn(*rows[:-1], 11)
    for layer, given in ((ours, x), (theirs, y)):
        (layer(given) * direction).sum().backward()
    torch.testing.assert_close(ours(x), theirs(y))
    pairs = [(x, y), *zip(ours.parameters(), theirs.parameters(), strict=True)]
    for a, b in pairs:
        torch.testing.assert_close(a.grad, b.grad)


@served
def test_float32_is_not_rounded_to_a_shorter_type():
    torch.manual_seed(0)
    x, weight = torch.randn(64, 576), torch.randn(300, 576)
    exact = F.linear(x.double(), weight.double())
    assert (linear(x, weight).double() - exact).abs().max() < 1e-5 * exact.abs().max()


@served
def test_bfloat16_autocast_reaches_it():
    layer = Linear(7, 11)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(2, 7)).dtype == torch.bfloat16


def test_a_frozen_model_keeps_its_values_and_its_weights_can_be_replaced():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(7, 11), nn.ReLU(), nn.Linear(11, 3, bias=False))
    names, x = list(model.state_dict()), torch.randn(4, 7)
    before = model(x)
    freeze(model)
    assert list(model.state_dict()) == names
    assert not any(p.requires_grad for p in model.parameters())
    with torch.no_grad():
        torch.testing.assert_close(model(x), before)
        model[2].weight.mul_(2)  # packed weights must not outlive what they were made of
        torch.testing.assert_close(model(x), 2 * before)
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            torch.testing.assert_close(twin(x), 2 * before)
