"""How far it is from the command to the loss: counted on the stack of a real run, as docs/architecture.md names it."""

import re
import traceback
from pathlib import Path

from torch import Tensor

import draftopd
from draftopd.objectives.base import CrossEntropy
from draftopd.objectives.rows import Rows
from runs import UNTESTED

SOURCES = Path(draftopd.__file__).parent


def test_six_functions_lead_from_the_command_to_the_loss(command, monkeypatch):
    stacks: list[list[str]] = []
    numerators = CrossEntropy.numerators

    def recorded(self: CrossEntropy, logits: Tensor, log_p: Tensor | None, rows: Rows) -> dict[str, Tensor]:
        frames = [frame for frame in traceback.extract_stack() if SOURCES in Path(frame.filename).parents]
        stacks.append([f"{Path(frame.filename).stem}.{frame.name}" for frame in frames])
        return numerators(self, logits, log_p, rows)

    monkeypatch.setattr(CrossEntropy, "numerators", recorded)
    assert command("experiment=smoke/sft", "budget.epochs=null", "budget.steps=1", *UNTESTED) == 0
    # the plan and validations have losses too
    own = [*next(stack for stack in stacks if "module.training_step" in stack), "base.numerators"]
    assert len(own) <= 6, own
    page = (SOURCES.parents[1] / "docs" / "architecture.md").read_text()
    named = re.search(r"^fit\.main → .*$", page, re.MULTILINE)
    assert named is not None
    assert [name.split(".")[-1] for name in named.group().split(" → ")] == [name.split(".")[-1] for name in own]
