"""Drafters for speculative decoding, trained by SFT and by on-policy distillation.

run = draftopd.restore("last.ckpt")  # or an MLflow run id: target, drafter, prompts, settings
results = draftopd.rollout(run.target, run.drafter, run.encoded("test", 8), run.decoding)
print(results[0].trace.render(run.target.tokenizer))
(result,) = draftopd.evaluate_drafters(run.target, {"mine": run.drafter}, run.asked("test", 8), run.decoding)
print(result.scores["mean"]["acceptance_length"].estimate())
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from draftopd.checkpoints.native import restore
    from draftopd.checkpoints.published import published
    from draftopd.decoding.redraft import redraft
    from draftopd.decoding.rollout import rollout
    from draftopd.decoding.settings import Decoding
    from draftopd.errors import DraftError
    from draftopd.evaluation.run import evaluate_drafters
    from draftopd.target.load import hf, smollm2
    from draftopd.trace import Trace

__version__ = version("draftopd")
__all__ = [
    "Decoding",
    "DraftError",
    "Trace",
    "evaluate_drafters",
    "hf",
    "published",
    "redraft",
    "restore",
    "rollout",
    "smollm2",
]
_HOMES = {
    "Decoding": "decoding.settings",
    "DraftError": "errors",
    "Trace": "trace",
    "evaluate_drafters": "evaluation.run",
    "hf": "target.load",
    "published": "checkpoints.published",
    "redraft": "decoding.redraft",
    "restore": "checkpoints.native",
    "rollout": "decoding.rollout",
    "smollm2": "target.load",
}


def __getattr__(name: str) -> Any:
    """Imported when first asked for: torch and transformers take seconds."""
    if name not in _HOMES:
        raise AttributeError(f"module 'draftopd' has no attribute '{name}'")
    return getattr(import_module(f"draftopd.{_HOMES[name]}"), name)
