"""Where replay batches come from: the target's own texts (SFT), or fresh rollouts with the current weights (OPD).

Both hand Lightning one list of micro-batches per optimizer step and reload every epoch, so that an on-policy epoch is
drafted by the weights it starts from.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import lightning as L
import torch
from rich import get_console
from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TimeRemainingColumn
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from draftopd.errors import DraftError
from draftopd.ledger import Ledger
from draftopd.module import DraftModule
from draftopd.prompts import Prompt, Prompts, encode
from draftopd.rollout import Decoding, rollout
from draftopd.texts import TextCache, Texts
from draftopd.trace import ReplayBatch, collate, teach


@contextmanager
def progress(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar for long work; yields the function that moves it on."""
    columns = (SpinnerColumn(), *Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=get_console(), transient=True) as bar:
        task = bar.add_task(title, total=total)
        yield lambda finished: bar.advance(task, finished)


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
    """What SFT and OPD share: encoded prompts, the target's texts, the validation grid.

    Args:
        decoding: how texts and rollouts are made.
        batch_size: texts of one optimizer step, over all processes.
        micro_batch_size: texts of one forward; changes memory and speed, not results.
        num_anchors: random anchors a text (SFT), redrawn every step.
        val_anchors: anchors of the fixed validation grid of a text.
        max_prompt_length: longer prompts are left out, in tokens.
        enable_thinking: handed to chat templates that know it.
    """

    def __init__(
        self,
        prompts: Prompts,
        texts: TextCache,
        decoding: Decoding,
        batch_size: int = 16,
        micro_batch_size: int = 8,
        num_anchors: int = 24,
        val_anchors: int = 16,
        max_prompt_length: int = 512,
        enable_thinking: bool | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.prompts, self.cache, self.decoding = prompts, texts, decoding
        self.batch_size, self.micro_batch_size = batch_size, micro_batch_size
        self.num_anchors, self.val_anchors = num_anchors, val_anchors
        self.max_prompt_length, self.enable_thinking, self.seed = max_prompt_length, enable_thinking, seed
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
        prompts = self.prompts.split(split)
        tokenizer = self.module.target.tokenizer
        pairs = [(p, encode(p, tokenizer, self.enable_thinking, self.max_prompt_length)) for p in prompts]
        fitting = [(p, ids) for p, ids in pairs if ids is not None]
        if not fitting:
            raise DraftError(
                f"no prompts left in split '{split}': all {len(prompts)} are longer than data.max_prompt_length="
                f"{self.max_prompt_length} tokens"
            )
        return fitting[:limit]

    def texts(self, split: str) -> Texts:
        """The target's greedy texts of a split: from the cache, or written now."""
        if split not in self._texts:
            module, cost = self.module, Ledger()
            ids = [ids for _, ids in self.encoded(split)]
            with progress(f"target writes {split} texts", len(ids)) as on_done, module.ledger.timed("texts"):
                self._texts[split] = self.cache.texts(
                    module.target, ids, self.decoding, module.drafter.layer_ids, cost, on_done
                )
            module.ledger.take(cost, "texts")
        return self._texts[split]

    def usable(self, split: str) -> list[int]:
        """Texts with at least one anchor: two tokens of response.

        Raises:
            DraftError: there is none.
        """
        index = [i for i, text in enumerate(self.texts(split).traces) if text.response_length >= 2]
        if not index:
            raise DraftError(f"no text of split '{split}' has two tokens of response: nothing can be drafted")
        return index

    def draft_vocabulary(self, size: int) -> Tensor:
        """The `size` tokens that occur most in the training texts' responses, sorted; stop tokens always."""
        target = self.module.target
        counts = torch.zeros(target.vocab_size)
        for text in self.texts("train").traces:
            counts += torch.bincount(text.tokens[text.prompt_length :], minlength=len(counts))
        counts[target.stop_tokens] = counts.max() + 1
        return counts.sort(descending=True, stable=True).indices[:size].sort().values

    def replay(self, texts: Texts, index: Sequence[int], anchors: Sequence[Tensor]) -> ReplayBatch:
        features = [texts.features(i) for i in index]
        stored = [f for f in features if f is not None]
        num = self.module.drafter.num_draft_tokens
        return teach([texts.traces[i] for i in index], anchors, num, stored or None)

    def val_dataloader(self) -> DataLoader:
        """The same anchors every time: spread evenly over each response."""
        texts, index = self.texts("val"), self.usable("val")

        def build(step: int) -> ReplayBatch:
            part = index[step * self.micro_batch_size : (step + 1) * self.micro_batch_size]
            grids = []
            for i in part:
                first, last = texts.traces[i].prompt_length, len(texts.traces[i].tokens) - 2
                count = min(self.val_anchors, last - first + 1)
                grids.append(torch.linspace(first, last, count).round().long())
            return self.replay(texts, part, grids)

        return DataLoader(_Steps(build, -(-len(index) // self.micro_batch_size)), batch_size=None)  # type: ignore[arg-type]


class SFTDataModule(DraftDataModule):
    """Blocks at random anchors of the target's own texts; every draft is the text's token, all accepted."""

    def train_dataloader(self) -> DataLoader:
        texts, index = self.texts("train"), self.usable("train")
        epoch = self.trainer.current_epoch if self.trainer else 0
        order = torch.randperm(len(index), generator=_generator(self.seed, epoch)).tolist()
        steps = max(1, len(order) // self.batch_size)

        def build(step: int) -> list[ReplayBatch]:
            chosen = [index[i] for i in order[step * self.batch_size : (step + 1) * self.batch_size]]
            generator = _generator(self.seed, epoch, step)
            anchors = [self._anchors(texts, i, generator) for i in chosen]
            size = self.micro_batch_size
            parts = range(0, len(chosen), size)
            return [self.replay(texts, chosen[at : at + size], anchors[at : at + size]) for at in parts]

        return DataLoader(_Steps(build, steps), batch_size=None)

    def _anchors(self, texts: Texts, index: int, generator: torch.Generator) -> Tensor:
        """Distinct random positions of the response, its tail included; one token must follow."""
        text = texts.traces[index]
        candidates = torch.arange(text.prompt_length, len(text.tokens) - 1)
        chosen = torch.randperm(len(candidates), generator=generator)[: self.num_anchors]
        return candidates[chosen.sort().values]


class OnPolicyDataModule(DraftDataModule):
    """Traces of target-assisted rollouts, drafted by the weights that the epoch starts from (arXiv 2605.29343).

    Args:
        prompts_per_epoch: prompts of one rollout phase. With `batch_size` equal to it every update is made on traces
            of exactly the current weights, as in the official run (210 prompts for each optimizer step).
        options: those of DraftDataModule.
    """

    def __init__(
        self,
        prompts: Prompts,
        texts: TextCache,
        decoding: Decoding,
        prompts_per_epoch: int,
        batch_size: int = 16,
        micro_batch_size: int = 8,
        val_anchors: int = 16,
        max_prompt_length: int = 512,
        enable_thinking: bool | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(
            prompts,
            texts,
            decoding,
            batch_size=batch_size,
            micro_batch_size=micro_batch_size,
            val_anchors=val_anchors,
            max_prompt_length=max_prompt_length,
            enable_thinking=enable_thinking,
            seed=seed,
        )
        self.prompts_per_epoch = prompts_per_epoch

    def train_dataloader(self) -> DataLoader:
        module = self.module
        prompts = self._next_prompts()
        with progress("rolling out", len(prompts)) as on_done, module.ledger.timed("rollout"):
            results = rollout(
                module.target,
                module.drafter,
                prompts,
                self.decoding,
                keep=True,
                drafter_step=module.global_step,
                ledger=module.ledger,
                on_done=on_done,
            )
        results = [r for r in results if len(r.trace.anchors)]
        if not results:
            raise DraftError("every response of this rollout ended with its first token: nothing was drafted")
        self.last_traces = [r.trace for r in results]
        steps = max(1, len(results) // self.batch_size)

        def build(step: int) -> list[ReplayBatch]:
            # a remainder joins the last step: no trace that was paid for is dropped
            end = len(results) if step == steps - 1 else (step + 1) * self.batch_size
            part = results[step * self.batch_size : end]
            micro = [part[at : at + self.micro_batch_size] for at in range(0, len(part), self.micro_batch_size)]
            return [
                collate([r.trace for r in m], [r.features for r in m], [r.target_hidden for r in m]) for m in micro
            ]

        return DataLoader(_Steps(build, steps), batch_size=None)

    def _next_prompts(self) -> list[list[int]]:
        """This epoch's prompts: a new shuffle each time the pool has been gone through."""
        pool = [ids for _, ids in self.encoded("train")]
        epoch = self.trainer.current_epoch if self.trainer else 0
        chosen = []
        for place in range(epoch * self.prompts_per_epoch, (epoch + 1) * self.prompts_per_epoch):
            lap, at = divmod(place, len(pool))
            if not chosen or at == 0:
                order = torch.randperm(len(pool), generator=_generator(self.seed, lap)).tolist()
            chosen.append(pool[order[at]])
        return chosen


def _generator(*key: int) -> torch.Generator:
    """A generator for each (seed, epoch, ...), so that any draw can be made again."""
    state = 0
    for part in key:
        state = (state * 1_000_003 + part + 1) % (2**63 - 1)
    return torch.Generator().manual_seed(state)
