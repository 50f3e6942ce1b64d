"""What both layouts of DSpark share: the keys of its two heads. A block has K rows there, of which the first is the
anchor's: their block size is the number of drafts, ours counts the anchor too."""

from dataclasses import replace
from typing import Any

from draftopd.checkpoints import fields
from draftopd.checkpoints.findings import Findings
from draftopd.checkpoints.spec import DrafterSpec

HEAD_TYPE = "vanilla"


def compose(spec: DrafterSpec) -> dict[str, Any]:
    return {
        "block_size": spec.block_size - 1,
        "mask_token_id": spec.shape.mask_token_id,
        "markov_rank": spec.markov_rank,
        "markov_head_type": HEAD_TYPE,
        "enable_confidence_head": spec.confidence,
        "confidence_head_with_markov": spec.confidence,
    }


def block_size(config: dict[str, Any], findings: Findings) -> int | None:
    """Ours, anchor included."""
    effect = "SGLang and DeepSpec stop, speculators takes 8"
    drafts = fields.agreed("block_size", {"config.json": config.get("block_size")}, effect, findings)
    if drafts is None:
        return None
    fields.drafts("num_speculative_tokens", config.get("num_speculative_tokens"), drafts, findings, anchor=False)
    return drafts + 1


def with_heads(spec: DrafterSpec | None, config: dict[str, Any], findings: Findings) -> DrafterSpec | None:
    """The spec with the sizes of its heads, None after an error."""
    effect = "DeepSpec and vLLM stop, speculators takes 256"
    rank = fields.agreed("markov_rank", {"config.json": config.get("markov_rank")}, effect, findings)
    if rank is not None and rank < 1:
        findings.error(
            f"markov_rank is {rank}: no Markov head", "SGLang and vLLM build one, or stop", "train a DFlash drafter"
        )
        return None
    kind = config.get("markov_head_type", HEAD_TYPE)
    if kind != HEAD_TYPE:
        findings.error(
            f"markov_head_type is {kind!r}", "vLLM and SGLang serve it as 'vanilla', which it is not", fields.OTHER
        )
    confidence = bool(config.get("enable_confidence_head", False))
    if confidence and not config.get("confidence_head_with_markov", False):
        findings.error(
            "confidence_head_with_markov is false",
            "SGLang refuses it, and here the confidence head reads the token before too",
            f"{fields.OTHER}, or write enable_confidence_head false and drop confidence_head.*",
        )
    return None if spec is None or rank is None else replace(spec, markov_rank=rank, confidence=confidence)
