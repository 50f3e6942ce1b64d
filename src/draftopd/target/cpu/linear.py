"""Matrix products of float32 on x86 processors, by the library that is fast on this processor.

torch hands them to MKL, which takes narrower instructions on processors of other makers than Intel: there they go
through oneDNN, which torch carries too and which does not ask for the maker. On Intel's they stay with MKL. Both may
keep a frozen weight in the layout that they multiply fastest (`benchmarks/linear.py` measures it). Everything else,
single rows, GPUs and other dtypes, is `torch.nn.functional.linear`.
"""

import platform
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class Library(Protocol):
    """Products of float32 with weights [O, I] as they are, and with weights in the library's own layout."""

    def pack(self, weight: Tensor) -> Tensor: ...

    def packed(self, x: Tensor, layout: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Rows x [..., I] -> [..., O]; no gradient."""
        ...

    def plain(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor: ...


class OneDNN:
    def pack(self, weight: Tensor) -> Tensor:
        return torch.ops.mkldnn._reorder_linear_weight(weight)

    def packed(self, x: Tensor, layout: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return _product(x, layout, bias)

    def plain(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return _Linear.apply(x, weight, bias) if _wanted(x, weight, bias) else _product(x, weight, bias)


class MKL:
    rows = 256
    """as far as packed weights help; more rows hide what packing saves"""

    def pack(self, weight: Tensor) -> Tensor:
        return torch.ops.mkl._mkl_reorder_linear_weight(weight, 64)  # laid out for that many rows, right for any number

    def packed(self, x: Tensor, layout: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        rows = x.numel() // x.shape[-1]
        if rows > self.rows:
            return F.linear(x, weight, bias)
        return torch.ops.mkl._mkl_linear(x, layout, weight, bias, rows)

    def plain(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)


def _library() -> Library | None:
    if platform.machine() not in ("x86_64", "AMD64"):
        return None
    names = Path("/proc/cpuinfo")
    maker = names.read_text() if names.exists() else platform.processor()
    if "GenuineIntel" in maker and torch.backends.mkl.is_available():
        return MKL()
    return OneDNN() if torch.backends.mkldnn.is_available() else None


LIBRARY = _library()


class Packed:
    """A frozen weight in the library's layout: made on first use, and anew for another weight. Copies begin empty."""

    def __init__(self) -> None:
        self._made_of: tuple[int, int] | None = None
        self._weight: Tensor | None = None

    def __reduce__(self):
        return Packed, ()

    def __call__(self, weight: Tensor, library: Library) -> Tensor:
        identity = (weight.data_ptr(), weight._version)
        if self._weight is None or self._made_of != identity:
            self._made_of, self._weight = identity, library.pack(weight.detach())
        return self._weight


class Linear(nn.Linear):
    """`nn.Linear` by `linear`; frozen weights are packed."""

    def __init__(self, inputs: int, outputs: int, bias: bool = False, packed: Packed | None = None) -> None:
        super().__init__(inputs, outputs, bias)
        self.packed = packed

    def forward(self, x: Tensor) -> Tensor:
        if x.numel() == self.in_features:  # one row: what `linear` would do, without asking
            return F.linear(x, self.weight, self.bias)
        return linear(x, self.weight, self.bias, self.packed)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, packed: Packed | None = None) -> Tensor:
    """x [..., I], weight [O, I], bias [O] -> [..., O].

    Args:
        packed: keeps the weight in the library's layout where no gradient is asked for; for weights that do not change.
    """
    # one row (or none): at matrix-vector products MKL is as fast on AMD's processors, and no layout helps on Intel's
    # and torch's compiler, which picks operators itself, does not take these as they are on every processor
    if LIBRARY is None or torch.compiler.is_compiling() or x.numel() <= weight.shape[1] or not _served(x, weight):
        return F.linear(x, weight, bias)
    if packed is None or _wanted(x, weight, bias):
        return LIBRARY.plain(x, weight, bias)
    return LIBRARY.packed(x, packed(weight, LIBRARY), weight, bias)


def _served(x: Tensor, weight: Tensor) -> bool:
    float32 = x.dtype == weight.dtype == torch.float32
    on_cpu = x.device.type == weight.device.type == "cpu"
    return float32 and on_cpu and not torch.is_autocast_enabled("cpu")


def _wanted(*tensors: Tensor | None) -> bool:
    """A gradient of one of them is."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


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
