"""Matrix products of float32 on x86 processors through oneDNN.

torch hands them to MKL, which takes narrower instructions on processors of other makers than Intel. oneDNN, which torch
carries too, does not ask for the maker, and may keep a frozen weight in the layout that it multiplies fastest
(`benchmarks/linear.py` measures both). Everything else, single rows, GPUs and other dtypes, is
`torch.nn.functional.linear`.
"""

import platform

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

AVAILABLE = torch.backends.mkldnn.is_available() and platform.machine() in ("x86_64", "AMD64")


class Packed:
    """A frozen weight in oneDNN's layout: made on first use, and anew for another weight. Copies begin empty."""

    def __init__(self) -> None:
        self._made_of: tuple[int, int] | None = None
        self._weight: Tensor | None = None

    def __reduce__(self):
        return Packed, ()

    def __call__(self, weight: Tensor) -> Tensor:
        identity = (weight.data_ptr(), weight._version)
        if self._weight is None or self._made_of != identity:
            self._made_of, self._weight = identity, torch.ops.mkldnn._reorder_linear_weight(weight.detach())
        return self._weight


class Linear(nn.Linear):
    """`nn.Linear` by `linear`; frozen weights are packed."""

    def __init__(self, inputs: int, outputs: int, bias: bool = False, packed: Packed | None = None) -> None:
        super().__init__(inputs, outputs, bias)
        self.packed = packed

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias, self.packed)


def freeze(model: nn.Module) -> None:
    """Turns off the gradients of a model's weights, and lets its linear layers pack theirs."""
    model.requires_grad_(False)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                setattr(parent, name, _frozen(child))


def _frozen(layer: nn.Linear) -> Linear:
    with torch.device("meta"):
        new = Linear(layer.in_features, layer.out_features, layer.bias is not None, Packed())
    new.weight, new.bias = layer.weight, layer.bias
    return new.train(layer.training)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, packed: Packed | None = None) -> Tensor:
    """x [..., I], weight [O, I], bias [O] -> [..., O].

    Args:
        packed: keeps the weight in oneDNN's layout where no gradient is asked for; for weights that do not change.
    """
    # one row (or none): at matrix-vector products MKL is as fast on AMD's processors and faster on Intel's
    # and torch's compiler, which picks operators itself, does not take these as they are on every processor
    if torch.compiler.is_compiling() or x.numel() <= weight.shape[1] or not _served(x, weight):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias)):
        return _Linear.apply(x, weight, bias)
    return _product(x, weight if packed is None else packed(weight), bias)


def _served(x: Tensor, weight: Tensor) -> bool:
    float32 = x.dtype == weight.dtype == torch.float32
    on_cpu = x.device.type == weight.device.type == "cpu"
    return AVAILABLE and float32 and on_cpu and not torch.is_autocast_enabled("cpu")


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight if ctx.needs_input_grad[0] else None)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        x, weight = ctx.saved_tensors
        rows = grad.reshape(-1, grad.shape[-1])
        of_x = None if weight is None else _product(rows, weight.t()).view(*grad.shape[:-1], -1)
        of_weight = None if x is None else _product(rows.t(), x.reshape(-1, x.shape[-1]).t())
        return of_x, of_weight, rows.sum(0) if ctx.needs_input_grad[2] else None
