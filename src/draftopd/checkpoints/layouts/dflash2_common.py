"""What both layouts of DFlash2 share: the sizes of its convolutions and selector, and no reduced vocabulary."""

from dataclasses import replace
from typing import Any

from draftopd.checkpoints import fields
from draftopd.checkpoints.findings import Findings
from draftopd.checkpoints.spec import DrafterSpec
from draftopd.errors import DraftError

ARCHITECTURE = "DFlash2DraftModel"
SIZES = ("selector_rank", "conv_kernel_size", "conv_group_size")
TOP_K = 16  # the candidates to which z-lab's drafters and engines apply the selector; here all tokens are


def compose(spec: DrafterSpec) -> dict[str, Any]:
    """
    Raises:
        DraftError: the draft vocabulary is reduced.
    """
    if spec.draft_vocab_size is not None:
        raise DraftError(
            f"no layout has a DFlash2 with a reduced draft vocabulary ({spec.draft_vocab_size} tokens): engines take "
            "candidates from the target's own head; train with drafter.draft_vocab_size=null"
        )
    top_k = min(TOP_K, spec.shape.vocab_size)
    return {name: getattr(spec, name) for name in SIZES} | {"selector_top_k": top_k}


def with_sizes(
    spec: DrafterSpec | None, config: dict[str, Any], place: str, effect: str, findings: Findings
) -> DrafterSpec | None:
    """The spec with the sizes that `config`, a section of the file called `place`, gives; None after an error."""
    names = (*SIZES, "selector_top_k")
    rank, taps, group, _ = (fields.agreed(name, {place: config.get(name)}, effect, findings) for name in names)
    if spec is None or rank is None or taps is None or group is None:
        return None
    if min(rank, taps, group) < 1 or spec.shape.hidden_size % group:
        findings.error(
            f"{', '.join(SIZES)} are {rank}, {taps}, {group} beside hidden_size {spec.shape.hidden_size}",
            "vLLM and speculators stop",
            "write those of the tensors: a conv_group_size that divides hidden_size",
        )
        return None
    return replace(spec, selector_rank=rank, conv_kernel_size=taps, conv_group_size=group)
