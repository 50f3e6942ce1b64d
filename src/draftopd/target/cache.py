"""A key-value cache whose rows may have different lengths.

A slot's index is its token's position. Every write starts at the row's own length. Slots of rejected drafts are never
visible (masks show slots up to the query's position), and the next write overwrites them. So cropping costs nothing: it
is a smaller number in `lengths`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

Where = tuple[slice | Tensor, slice | Tensor]
"""rows and slots of a buffer [B, S, ...]"""


class RaggedCache(Cache):
    """States by position for each layer, usually keys and values [B, S, heads, head_dim]; a `Cache` of transformers.

    Args:
        fixed: every forward sees all slots, under a mask, so that no shape depends on lengths: for compiled steps. The
            caller sees to it that the capacity suffices.
    """

    def __init__(self, rows: int, capacity: int, device: torch.device | str = "cpu", *, fixed: bool = False) -> None:
        super().__init__(layers=[])
        self.capacity, self.fixed = capacity, fixed
        self.lengths = torch.zeros(rows, dtype=torch.long, device=device)
        self.end = 0  # how many slots the current forward can see
        self.where: Where = (slice(None), slice(0, 0))  # the slots that it writes
        self.stores: dict[int, tuple[Tensor, ...]] = {}

    def begin(self, width: int) -> Tensor:
        """Starts a forward of `width` tokens a row; gives their positions [B, width]."""
        positions = self.lengths[:, None] + torch.arange(width, device=self.lengths.device)
        if self.fixed:
            self.end = self.capacity
            self.where = (torch.arange(len(positions), device=positions.device)[:, None], positions)
            return positions
        first, last = (int(value) for value in self.lengths.aminmax())
        self.end = last + width
        if self.end > self.capacity:
            raise ValueError(f"the cache holds {self.capacity} tokens a row, not {self.end}")
        if first == last:  # writing to a plain slice is several times faster
            self.where = (slice(None), slice(first, self.end))
        else:
            self.where = (torch.arange(len(positions), device=positions.device)[:, None], positions)
        return positions

    @property
    def seen(self) -> int:
        """Slots, from the first on, that hold all that is before the lengths."""
        return self.capacity if self.fixed else int(self.lengths.max())

    @property
    def even(self) -> bool:
        """All rows of the current forward end at the same slot: each sees all slots up to there."""
        return isinstance(self.where[0], slice)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Writes [B, heads, W, head_dim] after each row's length; gives all slots up to the longest row's end."""
        self.append(layer_idx, key_states.transpose(1, 2), value_states.transpose(1, 2))
        keys, values = self.stores[layer_idx]
        return keys[:, : self.end].transpose(1, 2), values[:, : self.end].transpose(1, 2)

    def append(self, layer: int, *states: Tensor) -> None:
        """Writes states [B, W, ...] after each row's length."""
        for store, new in zip(self._stores(layer, states), states, strict=True):
            store[self.where] = new.to(store.dtype)

    def _stores(self, layer: int, like: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """A layer's buffers, made on first use for states [_, _, ...] like these."""
        if layer not in self.stores:
            rows = len(self.lengths)
            self.stores[layer] = tuple(state.new_zeros(rows, self.capacity, *state.shape[2:]) for state in like)
            if self.fixed:  # CUDA graphs write to them where they lie
                for store in self.stores[layer]:
                    torch._dynamo.mark_static_address(store, guard=False)
        return self.stores[layer]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.end

    def put(self, rows: Tensor | slice, other: "RaggedCache") -> None:
        """Replaces rows by those of a cache of no larger capacity, or all by its only row."""
        self.lengths[rows] = other.lengths
        for layer, stores in other.stores.items():
            for store, new in zip(self._stores(layer, stores), stores, strict=True):
                store[rows, : other.capacity] = new

    def select(self, rows: Tensor) -> None:
        """Keeps only these rows."""
        self.lengths = self.lengths[rows]
        for layer, stores in self.stores.items():  # only one layer at a time is in memory twice
            self.stores[layer] = tuple(store[rows] for store in stores)
