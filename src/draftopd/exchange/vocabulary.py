"""What the linter says of a reduced draft vocabulary: `d2t` and `t2d` of model.safetensors."""

import torch
from torch import Tensor

from draftopd.exchange.findings import Findings
from draftopd.exchange.sheet import Layout, Sheet

HEAD = "lm_head.weight"


def check(tensors: dict[str, Tensor], sheet: Sheet, layout: Layout, findings: Findings) -> None:
    """
    Args:
        tensors: of the right shapes.
    """
    draft, d2t, t2d = sheet.draft_vocab_size, tensors.get("d2t"), tensors.get("t2d")
    if draft is None:
        if (d2t is not None and d2t.any()) or (t2d is not None and not t2d.all()):
            findings.error("d2t or t2d without draft_vocab_size", "vLLM drafts other tokens", "write draft_vocab_size")
        return
    absent = [name for name in layout.reduced if name not in tensors]
    again = "export it again with its target"
    if d2t is None:
        effect = "speculators fills in zeros, vLLM and SGLang take draft ids for token ids, without a word"
        findings.error(f"draft_vocab_size {draft} without {', '.join(absent)}", effect, again)
        return
    if "t2d" in absent and layout.name == "speculators":
        findings.error(f"draft_vocab_size {draft} without t2d", "speculators fills in zeros", again)
        return
    if absent:
        effect = "vLLM has no rows of its own to draft from" if HEAD in absent else "SafeAI's code cannot train it on"
        findings.warning(f"draft_vocab_size {draft} without {', '.join(absent)}", effect, again)
    if layout.name == "zlab":
        findings.warning(
            f"draft_vocab_size {draft} in z-lab's layout",
            f"SGLang, transformers and z-lab's code drop d2t and draft from all {sheet.shape.vocab_size} rows of the "
            f"head, {1 - draft / sheet.shape.vocab_size:.0%} of which it was not trained on: the text stays right, a "
            "draft costs more, and acceptance changes (measured once: tau 2.915 instead of 2.935, docs/serving.md)",
            "serve it with vLLM, or train with drafter.draft_vocab_size=null; make serve-check measures this one",
        )
    _offsets(d2t, t2d, sheet, findings)


def _offsets(d2t: Tensor, t2d: Tensor | None, sheet: Sheet, findings: Findings) -> None:
    if d2t.is_floating_point() or d2t.dtype == torch.bool:
        findings.error(
            f"d2t is {d2t.dtype}",
            "vLLM and SGLang add it to draft ids, which are whole numbers",
            "write target id minus draft id as int64",
        )
        return
    ids = d2t.long() + torch.arange(len(d2t))
    if not d2t.any():
        findings.error(
            "d2t is all zero",
            f"it was never filled: vLLM and SGLang take draft ids for token ids, the first {len(d2t)} alone",
            "write target id minus draft id, or export it again with its target",
        )
    elif ids.min() < 0 or ids.max() >= sheet.shape.vocab_size or not (ids.diff() > 0).all():
        looks = " (it seems to hold ids instead of offsets)" if (d2t.long().diff() > 0).all() else ""
        findings.error(
            f"d2t does not lead to rising token ids below {sheet.shape.vocab_size}{looks}",
            "vLLM drafts other tokens than the drafter meant",
            "write target id minus draft id",
        )
    elif t2d is not None and t2d.bool().sum() != len(d2t):
        findings.error(
            f"t2d marks {int(t2d.bool().sum())} tokens, d2t holds {len(d2t)}",
            "speculators stops",
            "write t2d anew: true at draft id + d2t of every draft id",
        )
    elif t2d is not None and not torch.equal(t2d.bool().nonzero()[:, 0], ids):
        findings.error(
            "t2d marks other tokens than d2t: one of them is stale",
            "SafeAI's code and speculators train t2d's tokens, vLLM and SGLang serve d2t's",
            "export it again with its target",
        )
