"""Is an exported drafter served as it was trained? What an engine accepted, step by step, beside redraft's own chain.

The drafts along a committed text follow from the text and the drafter. So whatever the engine wrote, `redraft` says how
many tokens each of its verifications has to commit; a drafter that is fed otherwise gives others.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from draftopd.checkpoints.spec import DrafterSpec
from draftopd.data.first_texts import HALF, TIES, Deviation, deviations
from draftopd.data.writers import TextSet
from draftopd.decoding.redraft import redraft
from draftopd.decoding.settings import Decoding
from draftopd.drafters.base import Drafter
from draftopd.errors import DraftError
from draftopd.publishing.engines import METHODS
from draftopd.target.model import Target
from draftopd.trace import Rollout, Trace, collate_rollouts

PromptIds = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Served:
    """What an engine made of the prompts."""

    texts: list[list[int]]
    """prompt and response"""
    committed: list[list[int]]
    """tokens of each verification of a response, bonus included; those behind the response's end do not count"""

    @property
    def tau(self) -> float:
        """Tokens committed / verifications over all responses, without the prefill's token; NaN: no verification."""
        verifications = sum(map(len, self.committed))
        return sum(map(sum, self.committed)) / verifications if verifications else float("nan")


@dataclass(frozen=True)
class Unlike:
    """The first verification of a response that committed another number of tokens than redraft's."""

    response: int
    step: int
    position: int
    """in the response, of the first draft that differs"""
    ours: int
    served: int
    """tokens that were committed"""
    gap: float
    """of the two drafts' logits, by the drafter here; infinite where it cannot draft the other"""
    tie: bool

    def __str__(self) -> str:
        kind = "a tie" if self.tie else "no tie"
        return (
            f"response {self.response}, verification {self.step} commits {self.served} tokens and not {self.ours}: "
            f"{kind}, the drafts at token {self.position} are {self.gap:.2g} apart"
        )


@dataclass(frozen=True)
class Audit:
    """Responses with the same steps, and those that have others or another text, each with its first place.

    Args:
        tau: by redraft's chains along the same texts.
        tie: difference of logits up to which a place is a tie.
    """

    responses: int
    same: int
    steps: list[Unlike]
    texts: list[tuple[int, Deviation]]
    tau: float
    tau_served: float
    tie: float

    @property
    def wrong(self) -> list[str]:
        """What no tie explains."""
        texts = [
            f"response {i} is not the target's text: token {place.position} is {place.gap:.2g} less probable, in "
            "log-probability, than the target's"
            for i, place in self.texts
            if place.gap > self.tie
        ]
        return [*texts, *(str(unlike) for unlike in self.steps if not unlike.tie)]

    @property
    def ties(self) -> list[str]:
        texts = [f"response {i}: the target's tokens at {p.position} tie" for i, p in self.texts if p.gap <= self.tie]
        return [*texts, *(str(unlike) for unlike in self.steps if unlike.tie)]

    @property
    def passed(self) -> bool:
        return not self.wrong

    @property
    def summary(self) -> str:
        taus = f"τ {self.tau_served:.3f} served, {self.tau:.3f} here"
        return f"{self.same} of {self.responses} responses have the steps of redraft, {len(self.ties)} ties; {taus}"


def audit(target: Target, drafter: Drafter, prompts: PromptIds, served: Served, tie: float | None = None) -> Audit:
    """Holds greedy responses against the target, and their verifications against redraft's chains along them.

    Args:
        tie: two tokens whose logits differ by no more are equally good; None = by the target's precision.

    Raises:
        DraftError: a response is none, as it has no token.
    """
    limit = max((len(text) - len(prompt) for text, prompt in zip(served.texts, prompts, strict=True)), default=0)
    tie = TIES.get(target.model.dtype, HALF) if tie is None else tie
    texts = TextSet(Path(), target, prompts, Decoding(max(1, limit)), (), None, len(prompts))
    nothing, found, stored = torch.zeros(0, dtype=torch.long), list[tuple[int, Deviation]](), list[Rollout]()
    for i, (text, prompt) in enumerate(zip(served.texts, prompts, strict=True)):
        ids = text[len(prompt) :]
        if not ids or not all(0 <= token < target.vocab_size for token in ids):
            raise DraftError(f"response {i} of the engine has no tokens, or some that the target has not")
        worst = max(deviations(texts, i, ids), key=lambda place: place.gap, default=None)
        found += [] if worst is None else [(i, worst)]
        trace = Trace(torch.tensor(text), len(prompt), nothing, nothing.view(0, 0), nothing, drafter_step=-1)
        stored.append(Rollout(trace))
    chains = redraft(target, drafter, stored, Decoding(max(1, limit), batch_size=8))
    own = [chain.trace.committed.tolist() for chain in chains]
    apart = [i for i, (ours, theirs) in enumerate(zip(own, served.committed, strict=True)) if ours != theirs]
    steps = [_unlike(target, drafter, i, chains[i], served.committed[i], tie) for i in apart]
    chain = Served(served.texts, own)
    return Audit(len(own), len(own) - len(apart), steps, found, chain.tau, served.tau, tie)


@torch.no_grad()
def _unlike(target: Target, drafter: Drafter, i: int, chain: Rollout, theirs: list[int], tie: float) -> Unlike:
    trace, ours = chain.trace, chain.trace.committed.tolist()
    # both commit the whole response, so they part before either ends
    step, mine, other = next((k, a, b) for k, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b)
    slot = min(mine, other)  # of the first draft that only one of the two has right, 1 = behind the anchor
    with drafter.evaluating():
        hidden = drafter(collate_rollouts([chain]).to(target.device), target.embed)[0, step, slot - 1]
    logits = drafter.head(target.head)(hidden)
    at = int(trace.anchors[step]) + slot
    place = _place(drafter, int(trace.tokens[at]))
    own, right = logits.topk(2).values, float("-inf") if place is None else float(logits[place])
    gap = float(own[0]) - (float(own[1]) if mine > other else right)
    return Unlike(i, step, at - trace.prompt_length, mine, other, gap, tie=gap <= tie)


def _place(drafter: Drafter, token: int) -> int | None:
    """Of a token among the drafter's logits."""
    if drafter.vocabulary is None:
        return token
    found = (drafter.vocabulary == token).nonzero()
    return int(found[0]) if len(found) else None


def request(target: Target, drafter: Drafter, folder: Path, prompts: PromptIds, tokens: int) -> dict[str, Any]:
    """What an engine is asked, as plain data.

    Raises:
        DraftError: no engine can load the target.
    """
    source = target.model.config.name_or_path
    if not source:
        raise DraftError("the target was not loaded from a folder or hub id, so no engine can load it")
    room = max(map(len, prompts)) + tokens + 2 * drafter.block_size  # vLLM drafts only where a whole block fits
    return {
        "target": source,
        "drafter": str(folder),
        "method": METHODS[DrafterSpec.of(drafter, target).kind],
        "prompts": [list(prompt) for prompt in prompts],
        "stop": target.stop_tokens.tolist(),
        "max_new_tokens": tokens,
        "max_model_len": room,
        "num_speculative_tokens": drafter.num_draft_tokens,
        "dtype": str(target.model.dtype).removeprefix("torch."),
    }


def from_accepted(prompts: PromptIds, responses: Sequence[dict[str, Any]]) -> Served:
    """Of responses' `tokens`, and the `accepted` drafts of each verification.

    vLLM counts drafts that it accepted behind the end of the response; here they are cut off as in ours.
    """
    texts, committed = [], []
    for prompt, response in zip(prompts, responses, strict=True):
        texts.append([*prompt, *response["tokens"]])
        left, counts = len(response["tokens"]) - 1, []
        for accepted in response["accepted"]:
            counts.append(min(accepted + 1, left))
            left -= counts[-1]
        # a step without drafts commits one token
        committed.append([count for count in counts if count > 0] + [1] * left)
    return Served(texts, committed)
