"""What SFT and OPD data share: encoded prompts, the target's texts, the validation grid."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import lightning as L
import torch
from torch import Tensor

from draftopd.console import signals
from draftopd.data.prompts import Prompt, Prompts
from draftopd.data.sources import encode_all
from draftopd.data.texts import TextCache, Texts
from draftopd.decoding import distributed
from draftopd.decoding.rollout import common_prefix
from draftopd.decoding.settings import Decoding
from draftopd.errors import DraftError
from draftopd.target.model import Target
from draftopd.trace import ReplayBatch, Rollout, Trace, no_blocks, text_blocks
from draftopd.training.module import DraftModule
from draftopd.values.checked import checked
from draftopd.values.types import Count, PartialShare, Seed

T = TypeVar("T")


def generator(*key: int) -> torch.Generator:
    """A generator for each (seed, epoch, ...), so that any draw can be made again."""
    state = 0
    for part in key:
        state = (state * 1_000_003 + part + 1) % (2**63 - 1)
    return torch.Generator().manual_seed(state)


@checked
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

    batch_size: Count = 16
    micro_batch_size: Count = 8
    val_anchors: Count = 16
    max_prompt_length: Count = 512
    enable_thinking: bool | None = None
    vocabulary_texts: Count = 512


@dataclass(frozen=True)
class Steps:
    """The optimizer steps of one epoch, each built when it is read."""

    build: Callable[[int], list[ReplayBatch]]
    steps: int
    first: int = 0
    """those before are done"""

    def __len__(self) -> int:
        """All, the done ones too: Lightning counts from the start of the epoch."""
        return self.steps

    def __iter__(self) -> Iterator[list[ReplayBatch]]:
        for step in range(self.first, self.steps):
            signals.release()  # the step before is whole, and building this one may take long
            yield self.build(step)


@dataclass(kw_only=True, eq=False, repr=False)
class DraftDataModule(L.LightningDataModule):
    """Prompts and texts of one run.

    Args:
        cache: of the target's texts.
        skip_share: share of the training prompts, from the first on, that is left out: those that the run's warm start
            was trained on.
    """

    prompts: Prompts
    cache: TextCache
    decoding: Decoding
    batching: Batching
    seed: Seed = 0
    skip_share: PartialShare = 0.0

    def __post_init__(self) -> None:
        super().__init__()
        self.results: list[Rollout] = []  # of the current rollout phase; none in SFT
        self.verified = True  # the target verifies the text of rollout phases
        self._encoded: dict[str, list[tuple[Prompt, list[int]]]] = {}
        self._texts: dict[str, Texts] = {}
        self._paid: set[tuple[str, int]] = set()

    @property
    def module(self) -> DraftModule:
        assert self.trainer is not None
        assert isinstance(self.trainer.lightning_module, DraftModule)
        return self.trainer.lightning_module

    @property
    def epoch(self) -> int:
        return self.trainer.current_epoch if self.trainer else 0

    @property
    def epochs_per_phase(self) -> int:
        """How many epochs train on the same traces."""
        return 1

    @property
    def stores_hidden(self) -> bool:
        """Stored texts carry the target's last hidden states besides the features."""
        return False

    def writing(self, split: str) -> Decoding:
        """How the target writes the texts of a split that this epoch reads."""
        return self.decoding

    def train_dataloader(self) -> Steps:
        """The epoch's steps, in a resumed run those that are left: none where only the validation is."""
        if self.trainer is None or not self.trainer.fit_loop.restarting:
            return self.train_steps()
        progress = self.trainer.fit_loop.epoch_loop.batch_progress
        done = progress.current.completed
        if progress.is_last_batch or self.module.budget.over:
            return Steps(lambda step: [], done, done)
        return replace(self.train_steps(), first=done)

    def train_steps(self) -> Steps:
        """All steps of this epoch."""
        raise NotImplementedError

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Not here: micro-batches come to the device one at a time, because those of a step may be tens of GB."""
        return batch

    def encoded(self, split: str, limit: int | None = None) -> list[tuple[Prompt, list[int]]]:
        """Prompts of a split with their token ids; raises DraftError where all are too long, or one cannot be used."""
        if split not in self._encoded:
            prompts, batching = self.prompts.split(split), self.batching
            if split == "train":
                prompts = prompts[int(self.skip_share * len(prompts)) :]
            lengths = (batching.enable_thinking, batching.max_prompt_length, "data.batching.max_prompt_length")
            target, drafter = self.module.target, self.module.drafter
            pairs = encode_all(prompts, target.tokenizer, *lengths)
            # of all, now: a text may be written hours later
            room = self.decoding.max_new_tokens + drafter.num_draft_tokens + 1
            target.check_prompts([ids for _, ids in pairs], room)
            self._encoded[split] = pairs
        return self._encoded[split][:limit]

    def texts(self, split: str) -> Texts:
        """The target's own texts of a split; they are written as they are needed."""
        if split not in self._texts or self._texts[split].decoding != self.writing(split):
            self._texts[split] = self.cache.open(*self._request(split))
            self.module.ledger.watch(self._texts[split].ledger)
        return self._texts[split]

    def planned(self, split: str) -> Texts:
        """The same to see which there are: nothing is written."""
        return self.cache.find(*self._request(split))

    def _request(self, split: str) -> tuple[Target, list[list[int]], Decoding, tuple[int, ...], str]:
        ids, layer_ids = [ids for _, ids in self.encoded(split)], self.module.drafter.layer_ids
        if self.stores_hidden:
            layer_ids = (*layer_ids, self.module.target.shape.num_layers)
        return self.module.target, ids, self.writing(split), layer_ids, f"target writes {split} texts"

    def written(self, split: str, count: int | None = None) -> Texts:
        """Texts of which the first `count` (default all) are on disk."""
        texts = self.texts(split)
        texts.write(count)
        return texts

    def pay(self, texts: Texts, index: Sequence[int]) -> None:
        """Charges these training texts, of all processes, at their first reading, where `texts.charged` says so."""
        if self.cache.charged:
            new = [i for i in dict.fromkeys(index) if (texts.folder.name, i) not in self._paid]
            shared = len(common_prefix(texts.prompts))
            for i in distributed.own(new):
                self.module.ledger.write(self.module.target, texts[i], shared)
            self._paid |= {(texts.folder.name, i) for i in new}

    def state_dict(self) -> dict[str, Any]:
        return {"paid": sorted(self._paid)} if self._paid else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._paid = {(folder, i) for folder, i in state.get("paid", ())}

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

    def text_batch(self, texts: Texts, index: Sequence[int], anchors: Sequence[Tensor]) -> ReplayBatch:
        """Blocks at anchors [N] of these texts, every draft accepted, with the stored states of the target."""
        if not index:
            return self.nothing()
        features, hidden = zip(*(self.stored(texts, i) for i in index), strict=True)
        slots = self.module.drafter.num_draft_tokens
        return text_blocks([texts[i] for i in index], anchors, slots, features, hidden)

    def stored(self, texts: Texts, index: int) -> tuple[Tensor | None, Tensor | None]:
        """The target's stored states of a text: features [T, F] and last hidden states [T, D], each None if absent."""
        states, width = texts.features(index), self.module.target.shape.hidden_size
        if states is None or not self.stores_hidden:
            return states, None
        return states[:, :-width], states[:, -width:].to(self.module.target.model.dtype)

    def nothing(self) -> ReplayBatch:
        drafter, size = self.module.drafter, self.module.target.shape.hidden_size
        return no_blocks(drafter.num_draft_tokens, len(drafter.layer_ids) * size, size)

    def micro(self, members: Sequence[T], owners: Sequence[int] | None = None) -> Iterator[Sequence[T]]:
        """This process's members in micro-batches: as many as in every process, so that the last may be empty.

        Args:
            owners: the process of each member; by default they take turns.
        """
        size, count = self.batching.micro_batch_size, distributed.count()
        owners = [i % count for i in range(len(members))] if owners is None else owners
        mine = [member for member, owner in zip(members, owners, strict=True) if owner == distributed.rank()]
        most = max((owners.count(owner) for owner in set(owners)), default=0)
        return (mine[at : at + size] for at in range(0, most, size))

    def val_dataloader(self) -> Steps:
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
            return [self.text_batch(texts, parts[step], [grid(texts[i]) for i in parts[step]])]

        return Steps(build, len(parts))

    def test_dataloader(self) -> Steps:
        """One empty step: callbacks roll out the prompts of the test split (`encoded`)."""
        return Steps(lambda step: [], 1)


def candidates(text: Trace) -> Tensor:
    """Positions of the response that can be an anchor: at least one token follows."""
    return torch.arange(text.prompt_length, len(text.tokens) - 1)
