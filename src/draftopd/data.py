"""Where replay batches come from: the target's own texts (SFT), or fresh rollouts with the current weights (OPD).

Both hand Lightning one list of micro-batches per optimizer step and reload every epoch, so that an on-policy epoch is
drafted by the weights it starts from.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import lightning as L
import torch
from rich import get_console
from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TimeRemainingColumn
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from draftopd.errors import DraftError
from draftopd.module import DraftModule
from draftopd.prompts import Prompt, Prompts, encode
from draftopd.rollout import Decoding, Rollout, rollout
from draftopd.texts import TextCache, Texts
from draftopd.trace import ReplayBatch, Trace, collate, teach


@contextmanager
def progress(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar for long work; yields the function that moves it on."""
    columns = (SpinnerColumn(), *Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=get_console(), transient=True) as bar:
        task = bar.add_task(title, total=total)
        yield lambda finished: bar.advance(task, finished)


def generator(*key: int) -> torch.Generator:
    """A generator for each (seed, epoch, ...), so that any draw can be made again."""
    state = 0
    for part in key:
        state = (state * 1_000_003 + part + 1) % (2**63 - 1)
    return torch.Generator().manual_seed(state)


@dataclass(frozen=True)
class Batching:
    """How texts become batches.

    Args:
        batch_size: texts of one optimizer step.
        micro_batch_size: texts of one forward; changes memory and speed, not results.
        val_anchors: anchors of a text on the fixed validation grid.
        max_prompt_length: longer prompts are left out, in tokens.
        enable_thinking: handed to chat templates that know it.
        vocabulary_texts: training texts whose tokens are counted for a reduced draft vocabulary.
    """

    batch_size: int = 16
    micro_batch_size: int = 8
    val_anchors: int = 16
    max_prompt_length: int = 512
    enable_thinking: bool | None = None
    vocabulary_texts: int = 512


class _Steps(Dataset):
    """The optimizer steps of one epoch, built when they are asked for."""

    def __init__(self, build: Callable[[int], list[ReplayBatch]], steps: int) -> None:
        self.build, self.steps = build, steps

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> list[ReplayBatch]:
        if step >= self.steps:
            raise IndexError(step)
        return self.build(step)


class DraftDataModule(L.LightningDataModule):
    """What SFT and OPD share: encoded prompts, the target's texts, the validation grid."""

    def __init__(
        self, prompts: Prompts, texts: TextCache, decoding: Decoding, batching: Batching, seed: int = 0
    ) -> None:
        super().__init__()
        self.prompts, self.cache, self.decoding, self.batching = prompts, texts, decoding, batching
        self.seed = seed
        self._encoded: dict[str, list[tuple[Prompt, list[int]]]] = {}
        self._texts: dict[str, Texts] = {}

    @property
    def module(self) -> DraftModule:
        assert self.trainer is not None and isinstance(self.trainer.lightning_module, DraftModule)
        return self.trainer.lightning_module

    def encoded(self, split: str, limit: int | None = None) -> list[tuple[Prompt, list[int]]]:
        """Prompts of a split with their token ids.

        Raises:
            DraftError: none is short enough.
        """
        if split not in self._encoded:
            prompts, longest = self.prompts.split(split), self.batching.max_prompt_length
            tokenizer, thinking = self.module.target.tokenizer, self.batching.enable_thinking
            pairs = [(p, encode(p, tokenizer, thinking, longest)) for p in prompts]
            self._encoded[split] = [(p, ids) for p, ids in pairs if ids is not None]
            if not self._encoded[split]:
                raise DraftError(
                    f"no prompts left in split '{split}': each of the {len(prompts)} is longer than "
                    f"data.batching.max_prompt_length={longest} tokens"
                )
        return self._encoded[split][:limit]

    def texts(self, split: str) -> Texts:
        """The target's greedy texts of a split; they are written as they are needed."""
        if split not in self._texts:
            ids, layer_ids = [ids for _, ids in self.encoded(split)], self.module.drafter.layer_ids
            self._texts[split] = self.cache.open(self.module.target, ids, self.decoding, layer_ids)
            self.module.ledger.watch(self._texts[split].ledger)
        return self._texts[split]

    def written(self, split: str, count: int | None = None) -> Texts:
        """Texts of which the first `count` (default all) are on disk."""
        texts = self.texts(split)
        count = min(len(texts), count or len(texts))
        with progress(f"target writes {split} texts", count) as on_done:
            texts.write(count, on_done)
        return texts

    def draft_vocabulary(self, size: int) -> Tensor:
        """The `size` tokens that occur most in the target's training texts, sorted; stop tokens always.

        Tokens that do not occur follow in the order of their ids, which for byte-pair vocabularies is roughly that of
        their frequency in general text.
        """
        target, texts = self.module.target, self.written("train", self.batching.vocabulary_texts)
        counts = torch.zeros(target.vocab_size)
        for i in range(min(len(texts), self.batching.vocabulary_texts)):
            counts += torch.bincount(texts[i].tokens[texts[i].prompt_length :], minlength=len(counts))
        counts[target.stop_tokens] = counts.max() + 1
        return counts.sort(descending=True, stable=True).indices[:size].sort().values

    def replay(self, texts: Texts, index: Sequence[int], anchors: Sequence[Tensor]) -> ReplayBatch:
        stored = [f for f in (texts.features(i) for i in index) if f is not None]
        return teach([texts[i] for i in index], anchors, self.module.drafter.num_draft_tokens, stored or None)

    def micro(self, members: Sequence) -> Iterator[Sequence]:
        size = self.batching.micro_batch_size
        return (members[at : at + size] for at in range(0, len(members), size))

    def val_dataloader(self) -> DataLoader:
        """The same anchors every time: spread evenly over each response."""
        texts = self.written("val")
        parts = list(self.micro([i for i in range(len(texts)) if candidates(texts[i]).numel()]))
        if not parts:
            raise DraftError("no validation text has two tokens of response: nothing can be drafted")

        def grid(text: Trace) -> Tensor:
            places = candidates(text)
            count = min(self.batching.val_anchors, len(places))
            return places[torch.linspace(0, len(places) - 1, count).round().long()]

        def build(step: int) -> list[ReplayBatch]:
            return [self.replay(texts, parts[step], [grid(texts[i]) for i in parts[step]])]

        return DataLoader(_Steps(build, len(parts)), batch_size=None)


def candidates(text: Trace) -> Tensor:
    """Positions of the response that can be an anchor: at least one token follows."""
    return torch.arange(text.prompt_length, len(text.tokens) - 1)


class SFTDataModule(DraftDataModule):
    """Blocks at random anchors of the target's own texts; every draft is the text's token, all accepted.

    Args:
        num_anchors: distinct anchors a text, redrawn every step from a generator seeded by (seed, epoch, step).
    """

    def __init__(
        self,
        prompts: Prompts,
        texts: TextCache,
        decoding: Decoding,
        batching: Batching,
        num_anchors: int = 24,
        seed: int = 0,
    ) -> None:
        super().__init__(prompts, texts, decoding, batching, seed)
        self.num_anchors = num_anchors

    def train_dataloader(self) -> DataLoader:
        texts, size = self.texts("train"), self.batching.batch_size
        epoch = self.trainer.current_epoch if self.trainer else 0
        # the first epoch goes through the texts in order, so that training starts while the target still writes
        order = (
            torch.randperm(len(texts), generator=generator(self.seed, epoch)).tolist() if epoch else range(len(texts))
        )

        def build(step: int) -> list[ReplayBatch]:
            draw = generator(self.seed, epoch, step)
            chosen = [i for i in order[step * size : (step + 1) * size] if candidates(texts[i]).numel()]
            anchors = {i: self._anchors(texts[i], draw) for i in chosen}
            return [self.replay(texts, part, [anchors[i] for i in part]) for part in self.micro(chosen)]

        return DataLoader(_Steps(build, max(1, len(texts) // size)), batch_size=None)

    def _anchors(self, text: Trace, draw: torch.Generator) -> Tensor:
        """Random positions of the response, its tail included."""
        places = candidates(text)
        return places[torch.randperm(len(places), generator=draw)[: self.num_anchors].sort().values]


class OnPolicyDataModule(DraftDataModule):
    """Traces of target-assisted rollouts, drafted by the weights that the epoch starts from (arXiv 2605.29343).

    Args:
        prompts_per_epoch: prompts of one rollout phase. With `batch_size` equal to it every update is made on traces
            of exactly the current weights, as in the official run (210 prompts for each optimizer step).
    """

    def __init__(
        self,
        prompts: Prompts,
        texts: TextCache,
        decoding: Decoding,
        batching: Batching,
        prompts_per_epoch: int = 64,
        seed: int = 0,
    ) -> None:
        super().__init__(prompts, texts, decoding, batching, seed)
        self.prompts_per_epoch = prompts_per_epoch

    def train_dataloader(self) -> DataLoader:
        results = [r for r in self._roll_out() if len(r.trace.anchors)]
        if not results:
            raise DraftError("every response of this rollout ended with its first token: nothing was drafted")
        size = self.batching.batch_size
        steps = max(1, len(results) // size)

        def build(step: int) -> list[ReplayBatch]:
            # a remainder joins the last step: no trace that was paid for is dropped
            part = results[step * size : len(results) if step == steps - 1 else (step + 1) * size]
            return [
                collate([r.trace for r in m], [r.features for r in m], [r.target_hidden for r in m])
                for m in self.micro(part)
            ]

        return DataLoader(_Steps(build, steps), batch_size=None)

    def _roll_out(self) -> list[Rollout]:
        module, prompts = self.module, self._next_prompts()
        with progress("rolling out", len(prompts)) as on_done, module.ledger.timed("rollout"):
            return rollout(
                module.target,
                module.drafter,
                prompts,
                self.decoding,
                keep=True,
                drafter_step=module.global_step,
                ledger=module.ledger,
                on_done=on_done,
            )

    def _next_prompts(self) -> list[list[int]]:
        """This epoch's prompts: a new shuffle each time the pool has been gone through."""
        pool = [ids for _, ids in self.encoded("train")]
        first = (self.trainer.current_epoch if self.trainer else 0) * self.prompts_per_epoch
        orders: dict[int, list[int]] = {}
        chosen = []
        for place in range(first, first + self.prompts_per_epoch):
            lap, at = divmod(place, len(pool))
            if lap not in orders:
                orders[lap] = torch.randperm(len(pool), generator=generator(self.seed, lap)).tolist()
            chosen.append(pool[orders[lap][at]])
        return chosen
