"""Traces as a page that stands alone: block by block, with what both sides thought of every token."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from html import escape
from itertools import accumulate
from typing import Any

from jinja2 import Environment, PackageLoader
from transformers import PreTrainedTokenizerBase

from draftopd.evaluation.diagnosis import Sides
from draftopd.trace import Outcome, Trace

MARKS = {" ": "·", "\n": "↵", "\t": "⇥"}
LONG = 400  # tokens of a prompt that is folded
Pair = Sequence[float]
"""probabilities of target and drafter; NaN where they are not known"""
UNKNOWN: Pair = (math.nan, math.nan)


@dataclass(frozen=True)
class Page:
    """HTML of a page that needs nothing beside itself."""

    html: str = field(repr=False)  # a notebook would keep it a second time

    def _repr_html_(self) -> str:
        """For notebooks: in a frame, so that neither disturbs the other's style."""
        style = "width: 100%; height: 36rem; border: 0"
        return f'<iframe srcdoc="{escape(self.html)}" style="{style}"></iframe>'


def page(template: str, values: dict[str, Any]) -> Page:
    """A template of `pages/`, filled."""
    found = Environment(loader=PackageLoader("draftopd.evaluation", "pages"), autoescape=True, trim_blocks=True)
    return Page(found.get_template(template).render(values))


def trace_page(traces: Sequence[Trace], tokenizer: PreTrainedTokenizerBase, sides: Sequence[Sides | None] = ()) -> Page:
    """Prompts, responses and their blocks, with a slider through the blocks.

    Args:
        sides: probabilities of each trace's tokens (diagnosis.probabilities), where they are known.
    """
    words = _Words(tokenizer)
    shown = [_trace(*pair, words) for pair in zip(traces, sides or [None] * len(traces), strict=True)]
    title = f"{len(traces)} {'response' if len(traces) == 1 else 'responses'}, block by block"
    return page("traces.html", {"title": title, "traces": shown, "known": any(s is not None for s in sides)})


class _Words:
    """Tokens as they stand in a text, with spaces and line ends visible."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.text = cache(self._text)

    def _text(self, token: int) -> str:
        """After another token: some tokenizers leave out a space at the start."""
        alone, twice = (
            self.tokenizer.decode([token] * n, clean_up_tokenization_spaces=False, skip_special_tokens=False)
            for n in (1, 2)
        )
        return str(twice[len(alone) :])

    def __call__(self, token: int, says: str = "") -> dict[str, Any]:
        pieces: list[dict[str, str]] = []
        for letter in self.text(token):
            if letter in MARKS:
                pieces.append({"mark": MARKS[letter], "text": letter})
            elif pieces and "mark" not in pieces[-1]:
                pieces[-1]["text"] += letter
            else:
                pieces.append({"text": letter})
        return {"pieces": pieces, "says": f"token {token}" + (f": {says}" if says else "")}


def _trace(trace: Trace, sides: Sides | None, words: _Words) -> dict[str, Any]:
    length = f", acceptance length {trace.acceptance_length:.2f}" if len(trace.anchors) else ", nothing drafted"
    added = accumulate(trace.committed.tolist())
    blocks = []
    for number, (block, total) in enumerate(zip(trace.outcomes, added, strict=True)):
        drafts, own = (None, UNKNOWN) if sides is None else (sides.drafts[number].tolist(), sides.own[number].tolist())
        so_far = f"{total} tokens by {number + 1} verifications so far, {total / (number + 1):.2f} each"
        blocks.append({**_block(block, drafts, own, words), "title": f"Block {number + 1}: {so_far}"})
    return {
        "title": f"{trace.response_length} tokens{length}",
        "prompt_length": trace.prompt_length,
        "short": trace.prompt_length <= LONG,
        "prompt": [words(token) for token in trace.tokens[: trace.prompt_length].tolist()],
        "opening": [words(token, "the target's, before any draft") for token in trace.opening.tolist()],
        "blocks": blocks,
    }


def _block(block: Outcome, drafts: Sequence[Pair] | None, own: Pair, words: _Words) -> dict[str, Any]:
    held, cut = block.accepted.tolist(), block.rejected.tolist()
    last = "correction" if cut else "bonus token"
    fates = [("held", "accepted")] * len(held) + [("cut", "rejected")] * len(cut)
    fates[len(held) + 1 :] = [("cut", "after the first rejected")] * (len(cut) - 1)
    rows = [
        _row(words, token, kind, fate, slot, drafts[slot - 1] if drafts else UNKNOWN)
        for slot, (token, (kind, fate)) in enumerate(zip([*held, *cut], fates, strict=True), 1)
    ]
    rows += [_row(words, t, "own", f"the target's own: {last}", len(held) + 1, own) for t in block.own.tolist()]
    return {"rows": rows, **{kind: [r["word"] for r in rows if r["kind"] == kind] for kind in ("held", "cut", "own")}}


def _row(words: _Words, token: int, kind: str, fate: str, slot: int, pair: Pair) -> dict[str, Any]:
    target, drafter = (_share(value) for value in pair)
    says = f"{fate}, position {slot}" + (f", target {target}, drafter {drafter}" if target else "")
    return {
        "word": words(token, says),
        "kind": kind,
        "fate": fate,
        "slot": slot,
        "target": target,
        "drafter": drafter,
    }


def _share(value: float) -> str:
    """A probability in per cent; empty where it is not known."""
    if math.isnan(value):
        return ""
    return f"{100 * value:.1f} %" if value >= 0.001 else "< 0.1 %"
