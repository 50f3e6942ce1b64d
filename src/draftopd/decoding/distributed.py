"""Work divided over the processes of one run (torch.distributed); a single process has all of it.

Process r of R takes items r, r + R, r + 2R, ...: shares differ by one item at most, and some may be empty.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar, cast

import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule

T = TypeVar("T")


def rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def count() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def own(items: Sequence[T]) -> Sequence[T]:
    """This process's share."""
    return items[rank() :: count()]


def gather(mine: Sequence[T]) -> list[T]:
    """All processes' shares in the order of the items; every process calls it."""
    if count() == 1:
        return list(mine)
    shares: list[Sequence[T]] = [[] for _ in range(count())]
    dist.all_gather_object(shares, mine)
    items = [cast(T, None)] * sum(map(len, shares))
    for first, share in enumerate(shares):
        items[first :: count()] = share
    return items


def first(value: float) -> float:
    """The first process's value; every process calls it."""
    if count() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def wait() -> None:
    """Waits until every process calls it."""
    if count() > 1:
        dist.barrier()


@contextmanager
def whole(module: nn.Module) -> Iterator[None]:
    """Parameters that FSDP splits over processes are whole inside; every process enters it."""
    if not isinstance(module, FSDPModule):
        yield
        return
    module.unshard()
    try:
        yield
    finally:
        module.reshard()
