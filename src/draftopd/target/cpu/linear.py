"""Matrix products of float32 on x86 processors, by the library that is fast on this processor.

torch hands them to MKL, which takes narrower instructions on processors of other makers than Intel: there they go
through oneDNN, which torch carries too and which does not ask for the maker. On Intel's they stay with MKL. Both can
store a frozen weight in the layout that they multiply fastest (`benchmarks/linear.py` measures it). Everything else
(single rows, GPUs, other dtypes) is `torch.nn.functional.linear`.
"""

import platform
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

TORCH = ((2, 7), (2, 15))
"""torch versions, from the first up to but not including the second: private operators of others are not called"""
Module = TypeVar("Module", bound=nn.Module)


class OneDNN:
    """Products of float32 with weights [O, I] as they are (`plain`) or in its own layout (`packed`: no gradient)."""

    def pack(self, weight: Tensor) -> Tensor:
        return torch.ops.mkldnn._reorder_linear_weight(weight)

    def packed(self, x: Tensor, layout: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return _product(x, layout, bias)

    def plain(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        weight = _dense(weight)
        return _Linear.apply(x, weight, bias) if _wants_gradient(x, weight, bias) else _product(x, weight, bias)


class MKL:
    """The same by MKL."""

    rows = 256
    """packed weights serve up to so many rows; with more, packing saves next to nothing"""

    def pack(self, weight: Tensor) -> Tensor:
        return torch.ops.mkl._mkl_reorder_linear_weight(weight, 64)  # fastest at 64 rows, correct for any number

    def packed(self, x: Tensor, layout: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        rows = x.numel() // x.shape[-1]
        if rows > self.rows:
            return F.linear(x, weight, bias)
        return torch.ops.mkl._mkl_linear(x, layout, weight, bias, rows)

    def plain(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)


Library = OneDNN | MKL


def find_library() -> Library | str:
    """The library for this processor, or what is missing."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return "an x86 processor"
    if not TORCH[0] <= tuple(int(part) for part in torch.__version__.split(".")[:2]) < TORCH[1]:
        first, end = (".".join(map(str, version)) for version in TORCH)
        return f"a torch version that its layers were made for ({first} <= torch < {end}, not {torch.__version__})"
    cpuinfo = Path("/proc/cpuinfo")
    maker = cpuinfo.read_text() if cpuinfo.exists() else platform.processor()
    if "GenuineIntel" in maker and _has("mkl", "_mkl_linear", "_mkl_reorder_linear_weight"):
        return MKL()
    found = _has("mkldnn", "_linear_pointwise", "_reorder_linear_weight")
    return OneDNN() if found else "a torch that carries MKL or oneDNN"


def _has(library: str, *operators: str) -> bool:
    carried = getattr(torch.backends, library).is_available()
    return carried and all(getattr(getattr(torch.ops, library), name, None) for name in operators)


LIBRARY = found if isinstance(found := find_library(), Library) else None


class Packed:
    """A frozen weight in the library's layout: made on first use and again for another weight. Copies start empty."""

    def __init__(self) -> None:
        self._made_of: tuple[int, int] | None = None
        self._weight: Tensor | None = None

    def __reduce__(self) -> tuple[type["Packed"], tuple[()]]:
        return Packed, ()

    def __call__(self, weight: Tensor, library: Library) -> Tensor:
        identity = (weight.data_ptr(), weight._version)
        if self._weight is None or self._made_of != identity:
            self._made_of, self._weight = identity, library.pack(weight.detach())
        return self._weight


class Linear(nn.Linear):
    """`nn.Linear` by `linear`."""

    packed: Packed | None = None

    def forward(self, x: Tensor) -> Tensor:
        if x.numel() == self.in_features:  # one row: what `linear` would do, without asking
            return F.linear(x, self.weight, self.bias)
        return linear(x, self.weight, self.bias, self.packed)


def accelerate(module: Module, frozen: bool = False) -> Module:
    """Replaces torch's linear layers inside a module by `Linear` over the same parameters.

    Args:
        frozen: the weights do not change any more: they are packed.
    """
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                layer = Linear(child.in_features, child.out_features, child.bias is not None, device="meta")
                layer.weight, layer.bias = child.weight, child.bias
                layer.packed = Packed() if frozen else None
                setattr(parent, name, layer.train(child.training))
    return module


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, packed: Packed | None = None) -> Tensor:
    """x [..., I], weight [O, I], bias [O] -> [..., O].

    Args:
        packed: holds the weight in the library's layout, used where no gradient is asked for; for frozen weights.
    """
    # one row (or none): at matrix-vector products MKL is as fast on AMD's processors, and no layout helps on Intel's;
    # torch's compiler picks operators itself and does not take these on every processor
    if LIBRARY is None or torch.compiler.is_compiling() or x.numel() <= weight.shape[1] or not _served(x, weight):
        return F.linear(x, weight, bias)
    if packed is None or _wants_gradient(x, weight, bias):
        return LIBRARY.plain(x, weight, bias)
    return LIBRARY.packed(x, packed(weight, LIBRARY), weight, bias)


def _served(x: Tensor, weight: Tensor) -> bool:
    float32 = x.dtype == weight.dtype == torch.float32
    on_cpu = x.device.type == weight.device.type == "cpu"
    return float32 and on_cpu and not torch.is_autocast_enabled("cpu")


def _wants_gradient(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def _dense(matrix: Tensor) -> Tensor:
    """Columns that were cut out of a wider matrix, copied: oneDNN multiplies by those with plain loops."""
    return matrix if matrix.is_contiguous() or matrix.t().is_contiguous() else matrix.contiguous()


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight if ctx.needs_input_grad[0] else None)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        rows = _dense(grad.reshape(-1, grad.shape[-1]))
        of_x = None if weight is None else _product(rows, weight.t()).view(*grad.shape[:-1], -1)
        of_weight = None if x is None else _product(rows.t(), _dense(x.reshape(-1, x.shape[-1])).t())
        return of_x, of_weight, rows.sum(0) if ctx.needs_input_grad[2] else None
