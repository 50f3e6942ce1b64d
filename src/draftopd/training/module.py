"""The training step: a frozen target, a trainable drafter, an objective, a budget."""

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy, ParallelStrategy
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard

from draftopd.blocks import packed
from draftopd.decoding.ledger import Ledger
from draftopd.decoding.memory import MicroBatches, arriving, divided
from draftopd.drafters.base import Drafter
from draftopd.errors import DraftError
from draftopd.objectives.base import Objective
from draftopd.objectives.chunked import DraftSide, TargetSide, chunked_loss
from draftopd.objectives.confidence import complete
from draftopd.objectives.rows import Rows, flatten, log_mass, most_probable
from draftopd.target.head import Head
from draftopd.target.model import Target
from draftopd.trace import ReplayBatch
from draftopd.training.budget import Budget
from draftopd.training.schedule import BudgetCosine, start_from
from draftopd.training.terms import Terms, clip, require_finite_weights, save_and_stop
from draftopd.values.checked import checked
from draftopd.values.types import Count, Natural, Positive


@checked
class DraftModule(L.LightningModule):
    """Trains a drafter on replayed blocks; SFT and on-policy distillation differ only in their data and objective.

    One Lightning batch is one optimizer step: a list of micro-batches. Sums over micro-batches and processes come
    first, the division after: one normalisation over everything that one optimizer step sees (arXiv 2605.29343).

    Args:
        objective: of all blocks; where the data mix both kinds, of those that the drafter drafted.
        optimizer: makes the optimizer from the drafter's parameters.
        random_objective: of mixed data's blocks at random anchors; None = `objective`.
        budget: the learning rate falls to 0 over it; `EndAtBudget` ends the run with it. None = one epoch.
        warmup_steps: optimizer steps in which the learning rate rises.
        chunk_rows: rows whose logits [chunk_rows, V] exist at a time.
        gradient_clip: largest norm of the gradient.
        attention: of the drafter in training: "sdpa", or "flex_attention" with block masks, for GPUs.
        gradient_checkpointing: the drafter's layers run again in the backward pass instead of keeping activations.
        torch_compile: compile the drafter's forward; a name or a function chooses another backend than inductor.
    """

    def __init__(
        self,
        target: Target,
        drafter: Drafter,
        objective: Objective,
        optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
        *,
        random_objective: Objective | None = None,
        budget: Budget | None = None,
        warmup_steps: Natural = 0,
        chunk_rows: Count = 512,
        gradient_clip: Positive = 1.0,
        attention: Literal["sdpa", "flex_attention"] = "sdpa",
        gradient_checkpointing: bool = False,
        torch_compile: bool | str | Callable[..., Any] = False,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.strict_loading = False  # checkpoints hold the drafter, never the target
        self.target, self.drafter = target, drafter
        self.objective = complete(objective, drafter.confidence_head)
        self.random_objective = random_objective and complete(random_objective, drafter.confidence_head)
        self.make_optimizer, self.budget, self.warmup_steps = optimizer, budget or Budget(epochs=1), warmup_steps
        self.chunk_rows, self.gradient_clip = chunk_rows, gradient_clip
        drafter.attention, drafter.gradient_checkpointing = attention, gradient_checkpointing
        if torch_compile:  # in place: names of weights stay
            drafter.compile(backend="inductor" if torch_compile is True else torch_compile)
        self.ledger = Ledger()
        self.terms = Terms(self.objective)
        self.init_optimizer: dict[str, Any] | None = None
        self.micro_batches = MicroBatches()
        self._held_out: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []

    def mix_anchors(self) -> None:
        """For data whose batches have either drafted blocks or blocks at random anchors."""
        self.random_objective = self.random_objective or self.objective
        self.terms = Terms(self.objective, self.random_objective)

    def configure_model(self) -> None:
        """FSDP2 shards the drafter, unless it uses a head of its own outside its forward; the target stays whole."""
        sharding = isinstance(self.trainer.strategy, ModelParallelStrategy)
        if sharding and self._head()[0].trained:
            raise DraftError("trainer=fsdp2 cannot shard a drafter with a head of its own: take trainer=ddp")
        if sharding and self.init_optimizer is not None:
            raise DraftError("init_optimizer=true puts whole states beside shards of weights: take trainer=ddp")
        if sharding and not isinstance(self.drafter, FSDPModule):
            fully_shard(self.drafter)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = self.make_optimizer(self.drafter.parameters())
        if self.init_optimizer is not None:
            start_from(optimizer, self.init_optimizer)
        return {"optimizer": optimizer, "lr_scheduler": BudgetCosine(optimizer, self.budget, self.warmup_steps)}

    def on_fit_start(self) -> None:
        """Encodes the prompts, and chooses the draft vocabulary of a new drafter."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        self.budget.start(data.epochs_per_phase)
        for split in ("val", "test"):
            data.encoded(split)
        if self.drafter.d2t is not None and not self.drafter.d2t.any():
            self.drafter.set_vocabulary(data.draft_vocabulary(len(self.drafter.d2t)).to(self.device))
        self.drafter.initialise(self.target.head)

    def on_train_batch_start(self, batch: list[ReplayBatch], batch_idx: int) -> None:
        """The learning rate of this step, by the share of the budget that is spent."""
        done = batch_idx / self.trainer.num_training_batches
        costs = self.budget.start_step(self.current_epoch, done, self.global_step, self.ledger)
        schedule = self.lr_schedulers()
        assert isinstance(schedule, BudgetCosine)
        schedule.step()
        values = {"train/lr": schedule.get_last_lr()[0], "train/budget_spent": self.budget.share}
        self.log_dict(values | {f"ledger/{name}": costs[name] for name in ("target_tokens", "minutes")}, batch_size=1)

    def training_step(self, batch: list[ReplayBatch], batch_idx: int) -> None:
        if not batch:  # every text of the step was too short for an anchor, in every process
            return
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        head, index = self._head()
        totals = self._sum([self._weights(micro, index) for micro in batch])
        coefficients = self.terms.coefficients(totals)
        with self.ledger.timed("train"):
            for attempt in self.micro_batches.attempts(batch, alone=self.trainer.world_size == 1):
                with attempt as texts:
                    optimizer.zero_grad()  # and lets go what an attempt held whose memory ended
                    value: Tensor | None = None
                    done: list[dict[str, Tensor]] = []
                    parts = [packed(part) for part in divided(batch, texts)]
                    for number, part in enumerate(arriving(parts, self.target.device), start=1):
                        value, terms = chunked_loss(*self._sides(part, head, index), coefficients, self.chunk_rows)
                        with self._gradients_meet(last=number == len(parts)):  # as a mean over processes
                            self.manual_backward(value * self.trainer.world_size)
                        done.append(terms)
            summed = self._sum(done)
            loss = self.terms.loss(summed, totals)
            weights = self.trainer.precision_plugin.main_params(optimizer.optimizer)
            norm = clip(weights, self.gradient_clip, self.drafter.confidence_head)
            if not math.isfinite(float(loss + norm)):
                why = f"at step {self.global_step} the loss is {float(loss):.4g}, its gradient's norm {float(norm):.4g}"
                save_and_stop(why, batch, self.trainer.default_root_dir)
            optimizer.step()
            optimizer.zero_grad()
        self.share_costs()
        self._log_step(batch, loss, summed, totals)

    def on_validation_start(self) -> None:
        require_finite_weights(self.drafter)

    on_test_start = on_validation_start

    def validation_step(self, batch: list[ReplayBatch], batch_idx: int) -> None:
        """Loss on a fixed grid of anchors."""
        for attempt in self.micro_batches.attempts(batch, alone=self.trainer.world_size == 1):
            with attempt as texts:
                done = [self._parts(part)[1:] for part in arriving(divided(batch, texts), self.target.device)]
        if not torch.stack([term for numerators, _ in done for term in numerators.values()]).isfinite().all():
            why = f"in validation at step {self.global_step} the loss is not finite"
            save_and_stop(why, batch, self.trainer.default_root_dir)
        self._held_out += done

    def on_validation_epoch_end(self) -> None:
        terms, weights = zip(*self._held_out, strict=True)
        self._held_out = []
        self.log("val/loss", self.terms.loss(self._sum(terms), self._sum(weights)), batch_size=1)

    def test_step(self, batch: None, batch_idx: int) -> None:
        """Callbacks roll out the test prompts at the end of the epoch."""

    def loss(self, batch: ReplayBatch) -> Tensor:
        """The objective on one batch."""
        return self._parts(batch)[0]

    def share_costs(self) -> None:
        """Sums the ledger over all processes; every process calls it."""
        if self.trainer.world_size > 1:
            self.ledger.share(lambda counts: self._add(counts.to(self.device)).cpu())

    def _add(self, value: Tensor) -> Tensor:
        """The sum over processes."""
        return self.trainer.strategy.reduce(value, reduce_op="sum")

    def _gradients_meet(self, last: bool) -> AbstractContextManager[None]:
        """Processes exchange gradients once a step, in the last backward pass; under FSDP in every one."""
        strategy = self.trainer.strategy
        return nullcontext() if last or not isinstance(strategy, ParallelStrategy) else strategy.block_backward_sync()

    def _weights(self, batch: ReplayBatch, index: Tensor | None) -> dict[str, Tensor]:
        """Denominators of the batch's terms, and how many texts have blocks."""
        dtype = torch.promote_types(self.dtype, torch.float32)  # type: ignore[arg-type]
        ids, kind = replace(batch, features=None, target_hidden=None).to(self.target.device), self.terms.kind(batch)
        weights = self.terms.objectives[kind].denominators(flatten(ids, index)) | {kind: (ids.drafted > 0).any(1)}
        return self.terms.sum([{name: weight.sum(dtype=dtype) for name, weight in weights.items()}])

    def _parts(self, batch: ReplayBatch) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """Loss, numerators and denominators of a batch."""
        head, index = self._head()
        weights, sides = self._weights(batch, index), self._sides(batch, head, index)
        return *chunked_loss(*sides, self.terms.coefficients(weights), self.chunk_rows), weights

    def _replayed(self, batch: ReplayBatch, needs_target: bool) -> ReplayBatch:
        """With features, and the target's hidden states if the objective reads them; the data may bring both."""
        batch = batch.to(self.target.device)
        if batch.features is not None and (batch.target_hidden is not None or not needs_target):
            return batch
        if self.training:
            self.ledger.replay(self.target, batch)
        with self.ledger.timed("replay") if self.training else nullcontext():
            return self.target.replay(batch, self.drafter.layer_ids)

    def _head(self) -> tuple[Head, Tensor | None]:
        """The draft head, and [V] its row for each token id (-1 for none) where its vocabulary is reduced."""
        head = self.drafter.head(self.target.head)
        if head.vocabulary is None:
            return head, None
        index = torch.full((self.target.vocab_size,), -1, device=self.device)
        return head, index.index_copy(0, head.vocabulary, torch.arange(len(head.vocabulary), device=self.device))

    def _sides(
        self, batch: ReplayBatch, head: Head, index: Tensor | None
    ) -> tuple[Objective, Rows, DraftSide, TargetSide | None]:
        """A batch's objective and rows, and what the loss reads of the drafter and of the target."""
        objective = self.terms.objectives[self.terms.kind(batch)]
        batch = self._replayed(batch, objective.needs_target)
        rows = flatten(batch, index)
        argmax = objective.needs_argmax and not bool(rows.reached.all())
        whole = self.target.head() if index is not None and (objective.whole_vocabulary or argmax) else None
        if self.training:
            self.ledger.train(self.target, self.drafter, batch, objective.needs_target, whole is not None)
        valid = batch.valid
        drafted = self.drafter(batch, self.target.embed)[valid]
        draft = DraftSide(head, drafted, head.trained, self.drafter.confidence_head)
        target = None
        if objective.needs_target:
            assert batch.target_hidden is not None
            # the target's own head over the same tokens: the drafter may have another
            hidden, own, mass = batch.target_hidden[valid], self.target.head(head.vocabulary), None
            if whole is not None:  # fewer rows at a time for more logits a row: the same memory
                size = max(1, self.chunk_rows * len(own.weight) // len(whole.weight))
                mass = log_mass(whole, hidden, size) if objective.whole_vocabulary else None
                if argmax and index is not None:
                    rows = replace(rows, argmax=index[most_probable(whole, hidden, size)])
            target = TargetSide(own, hidden, mass)
        return objective, rows, draft, target

    def _sum(self, parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Sums over micro-batches and processes."""
        here = self.terms.sum(parts)
        return dict(zip(here, self._add(torch.stack(list(here.values()))).unbind(), strict=True))

    def _log_step(
        self, batch: list[ReplayBatch], loss: Tensor, summed: dict[str, Tensor], totals: dict[str, Tensor]
    ) -> None:
        values = {f"train/{name}": value for name, value in self.terms.log(summed, totals).items()}
        drafted_at = torch.cat([micro.drafter_step[micro.drafter_step >= 0] for micro in batch]).float()
        blocks = torch.stack([(micro.drafted > 0).sum() for micro in batch]).sum().float()
        counts = [blocks, drafted_at.sum(), drafted_at.new_tensor(len(drafted_at))]
        values["train/blocks"], steps, texts = self._add(torch.stack(counts).to(self.target.device)).unbind()
        if texts:
            values["train/staleness"] = self.global_step - 1 - steps / texts
        values["ledger/flops"] = torch.tensor(self.ledger.training_flops)
        self.log("train/loss", loss, prog_bar=True, batch_size=1)
        self.log_dict(values, batch_size=1)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        require_finite_weights(self.drafter)
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: value for name, value in state.items() if name.startswith("drafter.")}
        checkpoint["target_fingerprint"] = self.target.fingerprint
        checkpoint["reads"] = self.drafter.reads

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.ledger.load_state_dict(checkpoint["ledger"])  # run_record.py has saved both
        # a callback kept the budget in checkpoints of older versions
        self.budget.load_state_dict(checkpoint.get("budget") or checkpoint["callbacks"]["Budget"])
