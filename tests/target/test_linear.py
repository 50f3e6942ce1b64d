"""Linear layers by oneDNN and by MKL beside torch's own."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from draftopd.target.cpu.linear import LIBRARY, MKL, Library, Linear, OneDNN, accelerate, linear

LIBRARIES = [
    None,
    *([OneDNN()] if LIBRARY is not None and torch.backends.mkldnn.is_available() else []),
    *([MKL()] if torch.backends.mkl.is_available() else []),
]
"""What this machine's torch carries, whatever library its processor takes; None = torch's own product."""


@pytest.fixture(autouse=True, params=LIBRARIES, ids=lambda library: type(library).__name__)
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Library | None:
    """Each library is correct on every processor; only its speed decides which is taken."""
    monkeypatch.setattr("draftopd.target.cpu.linear.LIBRARY", request.param)
    return request.param


@pytest.mark.parametrize("rows", [(7,), (1, 7), (3, 5, 7), (0, 7)])
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_are_those_of_torch(rows: tuple[int, ...], bias: bool):
    torch.manual_seed(0)
    theirs = nn.Linear(7, 11, bias)
    ours = Linear(7, 11, bias)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(rows, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    direction = torch.randn(*rows[:-1], 11)
    for layer, given in ((ours, x), (theirs, y)):
        (layer(given) * direction).sum().backward()
    torch.testing.assert_close(ours(x), theirs(y))
    pairs = [(x, y), *zip(ours.parameters(), theirs.parameters(), strict=True)]
    for a, b in pairs:
        torch.testing.assert_close(a.grad, b.grad)


class Weights(TorchDispatchMode):
    """Notes the weights of oneDNN's products, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Tensor] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "_linear_pointwise" in str(func):
            self.found.append(args[1])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("of_input", [True, False])
@pytest.mark.parametrize("of_weight", [True, False])
def test_columns_of_a_wider_matrix(library: Library | None, of_input: bool, of_weight: bool):
    """As DSpark's head reads them: oneDNN takes a thousand times as long where a weight is such a view."""
    torch.manual_seed(0)
    x, weight = torch.randn(20, 7 + 9), torch.randn(11, 7 + 9)
    views = [m[:, 9:] if cut else m[:, 9:].contiguous() for m, cut in ((x, of_input), (weight, of_weight))]
    given, wanted = ([v.detach().requires_grad_() for v in views] for _ in range(2))
    direction = torch.randn(20, 11)
    with Weights() as seen:
        (linear(*given) * direction).sum().backward()
    (F.linear(*wanted) * direction).sum().backward()
    for a, b in zip(given, wanted, strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    assert len(seen.found) == (3 if isinstance(library, OneDNN) else 0)
    assert all(w.is_contiguous() or w.t().is_contiguous() for w in seen.found)


def test_float32_is_not_rounded_to_a_shorter_type():
    torch.manual_seed(0)
    x, weight = torch.randn(64, 576), torch.randn(300, 576)
    exact = F.linear(x.double(), weight.double())
    assert (linear(x, weight).double() - exact).abs().max() < 1e-5 * exact.abs().max()


def test_bfloat16_autocast_reaches_it():
    layer = Linear(7, 11, bias=False)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(2, 7)).dtype == torch.bfloat16


def frozen(bias: bool) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Linear(70, 110, bias), nn.ReLU(), nn.Linear(110, 3, bias)]
    return accelerate(nn.Sequential(*layers).requires_grad_(False), frozen=True)


def test_accelerated_modules_share_parameters_and_draw_no_random_numbers():
    plain = nn.Sequential(nn.Linear(7, 11), nn.Sequential(nn.Linear(11, 3, bias=False)))
    before, state = dict(plain.named_parameters()), torch.get_rng_state()
    ours = accelerate(plain)
    assert isinstance(ours[0], Linear)
    assert isinstance(ours[1][0], Linear)
    assert {name: id(p) for name, p in ours.named_parameters()} == {name: id(p) for name, p in before.items()}
    assert torch.equal(torch.get_rng_state(), state)


def test_packed_weights_can_be_replaced_and_copied():
    model, x = frozen(False), torch.randn(4, 70)
    before = model(x)
    with torch.no_grad():
        model[2].weight.mul_(2)  # packed weights must not outlive the weights they were made of
        torch.testing.assert_close(model(x), 2 * before)
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            torch.testing.assert_close(twin(x), 2 * before)


@pytest.mark.parametrize("bias", [True, False])
def test_packed_weights_serve_any_number_of_rows(bias: bool):
    layer = frozen(bias)[0]
    for rows in (300, 2, 64, 1, 0, 8, 257, 31):
        x = torch.randn(rows, 70)
        expected = F.linear(x, layer.weight, layer.bias)
        torch.testing.assert_close(layer(x), expected)
        torch.testing.assert_close(layer(x.t().contiguous().t()), expected)  # rows apart in memory
