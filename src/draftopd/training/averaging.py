"""Averaged weights: an exponential moving average of the drafter's.

Lightning's `WeightAveraging` copies the whole module, so a second target; averages its integer buffers, and with them
the draft vocabulary; and ends before callbacks diagnose a validation.
"""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn

from draftopd.errors import DraftError
from draftopd.training.module import DraftModule
from draftopd.values.checked import checked
from draftopd.values.types import PartialShare


@checked
class AveragedWeights(L.Callback):
    """Validations, the test and checkpoints take the average; training and its rollouts go on with the trained weights.

    After n steps the average keeps min(decay, (1 + n) / (10 + n)) of itself, so that short runs forget their start.
    Checkpoints hold it as the drafter's weights, and the trained ones beside it for `resume`.

    Args:
        decay: 0..1, below 1; the average spans about 1 / (1 - decay) steps.

    Raises:
        DraftError: weights are sharded.
    """

    def __init__(self, decay: PartialShare = 0.999) -> None:
        self.decay, self.steps = decay, 0
        self.average: list[Tensor] = []
        self.trained: list[Tensor] | None = None  # while the drafter has the average

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if isinstance(trainer.strategy, ModelParallelStrategy):
            raise DraftError("callbacks=ema averages whole weights, trainer=fsdp2 shards them: take trainer=ddp")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.average = [a.to(pl_module.device) for a in self.average or _copies(pl_module)]

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.steps += 1
        kept = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for average, weight in zip(self.average, _weights(pl_module), strict=True):
            average.lerp_(weight.to(average.dtype), 1 - kept)

    @torch.no_grad()
    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.average and self.trained is None:
            self.trained = [weight.clone() for weight in _weights(pl_module)]
            _set(pl_module, self.average)

    @torch.no_grad()
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.trained is not None:
            _set(pl_module, self.trained)
            self.trained = None

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.on_validation_start(trainer, pl_module)  # for good

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if self.average:
            weights = _weights(pl_module)
            names = [f"drafter.{name}" for name, _ in _drafter(pl_module).named_parameters()]
            average = [a.to(w.dtype) for a, w in zip(self.average, weights, strict=True)]
            checkpoint["state_dict"] = checkpoint["state_dict"] | dict(zip(names, average, strict=True))
            checkpoint["trained_weights"] = self.trained or weights

    @torch.no_grad()
    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if "trained_weights" in checkpoint:
            self.average = _copies(pl_module)
            _set(pl_module, checkpoint["trained_weights"])

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.steps = state_dict["steps"]


def _drafter(module: L.LightningModule) -> nn.Module:
    assert isinstance(module, DraftModule)
    return module.drafter


def _weights(module: L.LightningModule) -> list[Tensor]:
    return [weight.detach() for weight in _drafter(module).parameters()]


def _copies(module: L.LightningModule) -> list[Tensor]:
    """In float32 at least: lower precisions would lose small steps of the average."""
    return [w.to(torch.promote_types(w.dtype, torch.float32), copy=True) for w in _weights(module)]


def _set(module: L.LightningModule, values: list[Tensor]) -> None:
    for weight, value in zip(_weights(module), values, strict=True):
        weight.copy_(value)
