"""Features of texts that exist: the target reads many of similar length in one forward."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from draftopd.decoding.ledger import Ledger
from draftopd.decoding.memory import FEWER, Attempts, reading_bytes
from draftopd.decoding.settings import Decoding
from draftopd.target.model import Target

CPU_TOKENS = 512
"""of one forward on a CPU: more of them were not read faster there (SmolLM2, one thread)"""


@torch.no_grad()
def read_features(
    target: Target,
    texts: Sequence[Tensor],
    layer_ids: Sequence[int],
    decoding: Decoding,
    ledger: Ledger,
    *,
    on_done: Callable[[int], None] = lambda finished: None,
    store: Callable[[Tensor], Tensor] = Tensor.cpu,
) -> list[Tensor]:
    """Features [T, F] of each text, in the order of the texts; the others beside it change them by rounding alone.

    Args:
        texts: token ids [T].
        decoding: its `batch_size` and `memory_gib` bound the texts of one forward; a single text is always read.
        ledger: counts `replay` of the texts, without padding.
        on_done: called with the number of texts just read.
        store: moves features to the CPU.
    """
    waiting = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    results: dict[int, Tensor] = {}

    def go_on(most: int) -> None:
        while left := waiting[: len(texts) - len(results)]:  # the longest first: memory ends early if it does
            rows = min(most, affordable_texts(target, len(texts[left[-1]]), len(layer_ids), decoding))
            chosen = left[-rows:]
            with ledger.timed("replay"):
                tokens = pad_sequence([texts[i] for i in chosen], batch_first=True).to(target.device)
                _, features = target.read(tokens, layer_ids)
                # copies: a part would keep the whole forward's features
                read = [store(row[: len(texts[i])].clone()) for i, row in zip(chosen, features, strict=True)]
            for i in chosen:
                ledger.read(target, len(texts[i]))
            results.update(zip(chosen, read, strict=True))
            on_done(len(chosen))

    for attempt in Attempts(min(decoding.batch_size, len(texts)), "texts that are read", FEWER):
        with attempt as most:
            go_on(most)
    return [results[i] for i in range(len(texts))]


def affordable_texts(target: Target, length: int, layers: int, decoding: Decoding) -> int:
    """Texts of up to `length` tokens that are read in one forward, features of `layers` layers: at least one."""
    rows = min(decoding.batch_size, int(decoding.memory_gib * 2**30 / (reading_bytes(target, length, layers) * length)))
    return max(1, min(rows, CPU_TOKENS // length) if target.device.type == "cpu" else rows)
