"""Memory of rows that are decoded together: how much one needs, and fewer of them where that was too little."""

import logging
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from draftopd.drafters.base import Drafter
from draftopd.errors import DraftError
from draftopd.target.model import Target
from draftopd.trace import ReplayBatch

log = logging.getLogger(__name__)
FEWER = "lower batch_size or memory_gib of decoding"
SIGNS = ("out of memory", "can't allocate memory")  # in messages of torch's allocators


def row_bytes(target: Target, drafter: Drafter | None, *, capacity: int, prompt: int, states: int) -> int:
    """The largest number of bytes that one row of a rollout holds at a time.

    Caches and stored states for `capacity` positions, and what comes on top for a while: reading a prompt of `prompt`
    tokens, whose states stand beside the row until they are copied into it, or a step, in which one layer's keys and
    values are repeated for the query heads and a block has logits.

    Args:
        states: stored states of the target's hidden size per position: features, and one for every draft.
    """
    shape, size = target.shape, target.model.dtype.itemsize
    width, heads = shape.hidden_size, shape.num_attention_heads * shape.head_dim
    keys = 2 * shape.num_layers * shape.num_key_value_heads * shape.head_dim * size
    layers = () if drafter is None else drafter.layer_ids
    reading = keys + reading_bytes(target, prompt, len(layers))
    step = 2 * heads * size * capacity + 8 * target.vocab_size
    held = keys + states * width * size
    if drafter is not None:
        own = drafter.fc.weight.dtype.itemsize
        held += drafter.state_width * own
        reading += (drafter.state_width + drafter.fc.in_features + 3 * width) * own
        copied = max(2 * (a.q_proj.out_features + a.k_proj.out_features) for a in drafter.attentions)
        step += copied * own * capacity + 8 * target.vocab_size * drafter.num_draft_tokens
    return held * capacity + max(reading * prompt, step)


def reading_bytes(target: Target, length: int, layers: int) -> int:
    """The largest number of bytes that a forward over texts of a length holds for each token, without keys and values.

    Args:
        layers: whose outputs are the features.
    """
    shape, width = target.shape, target.shape.hidden_size
    heads, keys = shape.num_attention_heads * shape.head_dim, shape.num_key_value_heads * shape.head_dim
    # the widest point of a layer: queries, repeated keys and values, result; or both inner states and their product
    inside = max(4 * heads + 2 * keys, 3 * shape.intermediate_size)
    return target.model.dtype.itemsize * (2 * (1 + layers) * width + 2 * width + inside + length)  # a mask's row


@dataclass
class Attempts:
    """Work on rows that is tried again with half as many whenever memory ends; the first time, that is said.

        for attempt in Attempts(64, "prompts", remedy):
            with attempt as rows:
                ...  # starts anew, or goes on with what is left

    Args:
        rows: together, at first.
        what: they are, in the plural.
        remedy: the setting that asks for fewer.
        least: rows that are not divided any more.

    Raises:
        DraftError: memory ends with the least rows.
    """

    rows: int
    what: str
    remedy: str
    least: int = 1
    done: bool = False

    def __iter__(self) -> Iterator["Attempts"]:
        while not self.done:
            yield self

    def __enter__(self) -> int:
        return self.rows

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        self.done = error is None
        if error is None or not out_of_memory(error):
            return False
        if self.rows <= self.least:
            raise DraftError(f"out of memory with {self.rows} at a time of the {self.what}: {self.remedy}") from error
        self.rows //= 2
        _say(self.what, self.rows, self.remedy)
        return True


class MicroBatches:
    """Attempts at the micro-batches of one step after another; a step begins with what the last one came down to."""

    def __init__(self) -> None:
        self.texts = sys.maxsize

    def attempts(self, batch: Sequence[ReplayBatch], *, alone: bool) -> Iterator[Attempts]:
        """With texts of a micro-batch as rows.

        Args:
            alone: no other process waits for this one's forwards; else they stay as they are.
        """
        most = max(len(micro.tokens) for micro in batch)
        tries = Attempts(min(most, self.texts), "texts of a micro-batch", "lower data.batching.micro_batch_size")
        tries.least = 1 if alone else tries.rows
        yield from tries
        if tries.rows < most:
            self.texts = tries.rows


def divided(batch: Sequence[ReplayBatch], texts: int) -> list[ReplayBatch]:
    """Micro-batches of at most so many texts."""
    return [part for micro in batch for part in micro.parts(texts)]


def arriving(parts: Sequence[ReplayBatch], device: torch.device) -> Iterator[ReplayBatch]:
    """Batches on the device, one after the other: on a GPU the next one is copied while this one is computed.

    A thread brings it into pinned memory, from which a stream of its own copies it. So two are on the GPU at a time.
    """
    if device.type != "cuda" or not parts:
        yield from (part.to(device) for part in parts)
        return
    copies = torch.cuda.Stream(device)

    def send(part: ReplayBatch) -> tuple[ReplayBatch, torch.cuda.Event]:
        with torch.cuda.stream(copies):
            moved = part.pinned().to(device, non_blocking=True)
            return moved, copies.record_event()

    with ThreadPoolExecutor(1) as thread:
        ahead = [thread.submit(send, part) for part in parts[:1]]
        for following in [*parts[1:], None]:
            batch, copied = ahead.pop().result()
            if following is not None:
                ahead.append(thread.submit(send, following))
            here = torch.cuda.current_stream(device)
            here.wait_event(copied)
            for value in vars(batch).values():
                if isinstance(value, Tensor):
                    value.record_stream(here)  # its memory is not given away before this stream has read it
            yield batch


def out_of_memory(error: BaseException) -> bool:
    told = isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in SIGNS)
    return told or isinstance(error, torch.OutOfMemoryError | MemoryError)


_said = set[str]()


def _say(what: str, rows: int, remedy: str) -> None:
    if what not in _said:
        _said.add(what)
        log.warning("out of memory: going on with %d of the %s at a time; to save the attempts: %s", rows, what, remedy)
