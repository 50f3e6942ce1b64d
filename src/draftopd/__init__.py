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
    from draftopd.checkpoints.native import restore as restore
    from draftopd.checkpoints.published import published as published
    from draftopd.decoding.redraft import redraft as redraft
    from draftopd.decoding.rollout import rollout as rollout
    from draftopd.decoding.settings import Decoding as Decoding
    from draftopd.errors import DraftError as DraftError
    from draftopd.evaluation.run import evaluate_drafters as evaluate_drafters
    from draftopd.evaluation.trace_page import trace_page as trace_page
    from draftopd.target.load import hf as hf
    from draftopd.target.load import smollm2 as smollm2
    from draftopd.trace import Trace as Trace

__version__ = version("draftopd")
_HOMES = {
    "checkpoints.native": ("restore",),
    "checkpoints.published": ("published",),
    "decoding.redraft": ("redraft",),
    "decoding.rollout": ("rollout",),
    "decoding.settings": ("Decoding",),
    "errors": ("DraftError",),
    "evaluation.run": ("evaluate_drafters",),
    "evaluation.trace_page": ("trace_page",),
    "target.load": ("hf", "smollm2"),
    "trace": ("Trace",),
}


def __getattr__(name: str) -> Any:
    """Imported when first asked for: torch and transformers take seconds."""
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"draftopd.{home}"), name)
    raise AttributeError(f"module 'draftopd' has no attribute '{name}'")
