"""The accept rules for any target and any drafts: token by token, and exactly, as distributions."""

import hashlib
import random
from bisect import bisect_right
from itertools import accumulate
from math import lcm

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from draftopd.decoding.acceptance import accept, cut_at_stop, match, reject
from draftopd.decoding.sampling import CHOICE, Places, probabilities, uniforms
from draftopd.decoding.settings import Decoding
from draftopd.evaluation.metrics import Counts
from draftopd.trace import Trace

VOCABULARY = 5
WHOLE = st.integers(0, 10**6)
SAMPLING = st.fixed_dictionaries(
    {"temperature": st.sampled_from([0.0, 0.7, 1.0])},
    optional={"top_k": st.integers(1, 6), "top_p": st.sampled_from([0.5, 0.9]), "min_p": st.sampled_from([0.1, 0.5])},
)


class Language:
    """A target whose logits are a function of all tokens so far."""

    def __init__(self, seed: int, decoding: Decoding, key: int) -> None:
        self.seed, self.decoding, self.key = seed, decoding, key

    def logits(self, text: list[int]) -> Tensor:
        digest = hashlib.sha256(repr((self.seed, text)).encode()).digest()
        return torch.tensor([2.0 * random.Random(digest[:8] + bytes([v])).random() for v in range(VOCABULARY)])

    def next(self, text: list[int]) -> int:
        """One token of plain decoding, by the definition of inverse sampling."""
        p = probabilities(self.logits(text), self.decoding).double().tolist()
        if self.decoding.greedy:
            return p.index(max(p))
        at = torch.tensor([[len(text)]])
        mark = float(uniforms(self.decoding.seed, torch.tensor([self.key]), at, CHOICE)) * sum(p)
        return bisect_right(list(accumulate(p)), mark)

    def text(self, prompt: list[int], stop: list[int], room: int) -> list[int]:
        text = [*prompt]
        while room and (len(text) == len(prompt) or text[-1] not in stop):
            text.append(self.next(text))
            room -= 1
        return text

    def block(self, text: list[int], drafts: list[int]) -> tuple[int, int]:
        rows = torch.stack([self.logits(text + drafts[:k]) for k in range(len(drafts) + 1)])
        places = Places(self.decoding, torch.tensor([self.key]), torch.tensor([len(text) - 1]))
        accepted, bonus = accept(torch.tensor([drafts], dtype=torch.long), rows[None], places)
        return int(accepted), int(bonus)


@given(WHOLE, WHOLE, SAMPLING, st.integers(0, 4), st.sets(st.integers(0, 4), max_size=1), st.integers(1, 12))
def test_token_matching_commits_the_targets_text_whatever_is_drafted(seed, key, sampling, slots, stop, room):
    """Drafts are often right, and anything else: the text, its end and its counts are those of plain decoding."""
    target, prompt = Language(seed, Decoding(seed=seed, **sampling), key), [1, 2]
    plain, drafter = target.text(prompt, [*stop], room), random.Random(seed)
    text = [*prompt, plain[2]]
    done, left, rows = plain[2] in stop or room == 1, room - 1, list[tuple[int, list[int], int]]()
    while not done:
        guess = (plain[len(text) :] + [0] * slots)[:slots]
        drafts = [token if drafter.random() < 0.7 else drafter.randrange(VOCABULARY) for token in guess]
        accepted, bonus = target.block(text, drafts)
        block = torch.tensor([[*drafts[:accepted], bonus, *[0] * (slots - accepted)]])
        ends = torch.tensor([*stop], dtype=torch.long)
        counts, ended = cut_at_stop(block, torch.tensor([accepted + 1]), ends, torch.tensor([left]))
        count, done = int(counts), bool(ended)
        assert count == accepted + 1 or done
        rows.append((len(text) - 1, drafts, min(accepted, count)))
        text += block[0, :count].tolist()
        left -= count
    assert text == plain
    if rows and slots:
        anchors, drafted, accepts = (torch.tensor(values) for values in zip(*rows, strict=True))
        trace = Trace(torch.tensor(text), 2, anchors, drafted, accepts).check()
        counts = Counts.of(trace)
        assert counts.committed == len(text) - 3 == sum(counts.held) + sum(trace.committed - trace.accepted)
        cut = int((trace.drafted < slots).sum())
        assert sum(counts.accepted) == counts.blocks - cut == len(rows) - cut
        assert sum(k * count for k, count in enumerate(counts.accepted)) == sum(counts.held) - cut * accepts[-1]
        assert counts.drafted == sorted(counts.drafted, reverse=True)
        assert all(a >= b for a, b in zip(counts.reached, counts.held, strict=True))


@given(st.lists(st.tuples(WHOLE, WHOLE), min_size=1, max_size=4), st.integers(0, 4))
def test_matching_counts_the_leading_matches(seeds, slots: int):
    pairs = [[random.Random(seed).choices(range(2), k=slots + 1) for seed in pair] for pair in seeds]
    drafts, choices = torch.tensor([a[:slots] for a, _ in pairs]), torch.tensor([b for _, b in pairs])
    accepted, bonus = match(drafts.view(len(pairs), slots).long(), choices)
    for (proposed, chosen), count, token in zip(pairs, accepted.tolist(), bonus.tolist(), strict=True):
        assert proposed[:count] == chosen[:count]
        assert count == slots or proposed[count] != chosen[count]
        assert token == chosen[count]


@st.composite
def laws(draw: st.DrawFn, size: int) -> list[int]:
    """A distribution over so many tokens, in quarters."""
    law = [0] * size
    for _ in range(4):
        law[draw(st.integers(0, size - 1))] += 1
    return law


def grid(n: int) -> Tensor:
    return (torch.arange(n, dtype=torch.float64) + 0.5) / n


@given(st.data(), st.integers(1, 2), st.sampled_from([None, [0, 2], [1]]))
def test_rejection_sampling_commits_exactly_the_targets_distribution(data, slots: int, vocabulary):
    """Every draft, and grids of uniform numbers on which all probabilities (quarters, and ratios of quarters) are
    whole: the joint law of the committed tokens, and the chance of each number of accepted drafts, without statistics.

    p and q of the second slot depend on the first draft, as a target's and an autoregressive drafter's do.
    """
    size, ids = 3, vocabulary or [0, 1, 2]
    p0, q0 = data.draw(laws(size)), data.draw(laws(len(ids)))
    p1 = data.draw(st.lists(laws(size), min_size=size, max_size=size))
    q1 = data.draw(st.lists(laws(len(ids)), min_size=size, max_size=size))
    last = data.draw(laws(size))
    marks = lcm(1, 2, 3, 4)
    index = torch.cartesian_prod(*[torch.arange(len(ids))] * slots).view(-1, slots)
    accepts = torch.cartesian_prod(*[grid(marks)] * slots).view(-1, slots)
    shape = (len(index), len(accepts), marks)
    index = index[:, None, None].expand(*shape, slots).flatten(0, 2)
    accept_at = accepts[None, :, None].expand(*shape, slots).flatten(0, 2)
    choose_at = grid(marks)[None, None, :, None].expand(*shape, slots + 1).flatten(0, 2)
    drafts = torch.tensor(ids)[index]
    many = len(index)
    first = torch.tensor(p0).double().expand(many, -1)
    p = [first, torch.tensor(p1).double()[drafts[:, 0]], torch.tensor(last).double().expand(many, -1)][: slots + 1]
    q = [torch.tensor(q0).double().expand(many, -1), torch.tensor(q1).double()[drafts[:, 0]]][:slots]
    of_draft = torch.stack([q[k].gather(1, index[:, k : k + 1])[:, 0] / 4 for k in range(slots)], 1)
    weight = of_draft.prod(1) / (len(accepts) * marks)
    accepted, bonus = reject(
        drafts,
        torch.stack(p, 1) / 4,
        index,
        torch.stack(q, 1) / 4,
        uniforms=(accept_at, choose_at),
        vocabulary=None if vocabulary is None else torch.tensor(vocabulary),
    )
    tokens = torch.where(accepted > 0, drafts[:, 0], bonus)
    assert law_of(tokens, weight, size) == [x / 4 for x in p0]
    whole = [0.0] * size
    for row, token in enumerate(ids):
        whole[token] = q0[row] / 4
    overlap = [min(x / 4, y) for x, y in zip(p0, whole, strict=True)]
    for token in range(size):
        went_on = (accepted > 0) & (drafts[:, 0] == token)
        assert abs(float(weight[went_on].sum()) - overlap[token]) < 1e-12
        second = torch.where(accepted > 1, drafts[:, -1], bonus) if slots > 1 else bonus
        law = law_of(second[went_on], weight[went_on], size)
        assert law == [round(overlap[token] * x / 4, 9) for x in p1[token]]


def law_of(tokens: Tensor, weight: Tensor, size: int) -> list[float]:
    summed = torch.zeros(size, dtype=torch.float64).index_add(0, tokens, weight)
    return [round(value, 9) for value in summed.tolist()]
