"""What holds for every shipped objective: gradients, chunks, micro-batches, and a rising acceptance length."""

import itertools

import pytest
import torch
from benchmarks.objectives import NAMES, Table, acceptance_length, shipped, start, train
from torch import Tensor

from draftopd.decoding.rollout import rollout
from draftopd.decoding.settings import Decoding
from draftopd.drafters.dflash import DFlash
from draftopd.objectives.base import Distillation, Objective
from draftopd.objectives.chunked import DraftSide, TargetSide, chunked_loss
from draftopd.objectives.divergences import forward_kl
from draftopd.objectives.rows import Rows, flatten, log_mass
from draftopd.target.head import Head
from draftopd.target.model import Target
from draftopd.trace import ReplayBatch, collate, text_blocks
from draftopd.training.module import DraftModule
from pair import PROMPTS

SHARPENING = ("decoding_rounds", "reached_soft")  # q tends to p's most probable token, which is not the best to sample


@pytest.fixture(scope="module")
def batch(target: Target, eager_drafter: DFlash) -> ReplayBatch:
    """Rollouts with accepted, rejected and cut blocks."""
    results = rollout(target, eager_drafter, PROMPTS, Decoding(max_new_tokens=24))
    batch = collate([r.trace for r in results])
    assert len(batch.accepted[batch.drafted > 0].unique()) >= 3
    return target.replay(batch, eager_drafter.layer_ids)


def some_rows(blocks: int = 7) -> Rows:
    """Blocks of 1 to 4 drafts with every kind of row, in texts of 3 and 4 blocks."""
    generator = torch.Generator().manual_seed(3)
    parts = []
    for block, size in enumerate([1, 4, 3, 4, 2, 4, 4][:blocks]):
        accepted = int(torch.randint(0, size + 1, (), generator=generator))
        draft, text = torch.randint(0, 6, (2, size), generator=generator)
        text[:accepted] = draft[:accepted]
        of_block = (accepted, block, block >= 3, [9, 8, 5, 8, 6, 5, 2][block])
        parts.append((draft, text, torch.arange(1, size + 1), *(torch.full((size,), int(v)) for v in of_block)))
    rows = Rows(*(torch.cat(values) for values in zip(*parts, strict=True)))
    rows.text[2] = -1
    return rows


def test_rows_know_their_tokens_and_blocks(batch: ReplayBatch):
    head_index = torch.arange(200) - 3
    rows, m = flatten(batch, head_index), 0
    for b, n in itertools.product(range(len(batch.tokens)), range(batch.anchors.shape[1])):
        for k in range(1, int(batch.drafted[b, n]) + 1):
            at, accepted = int(batch.anchors[b, n]) + k, int(batch.accepted[b, n])
            inside = at < int(batch.lengths[b])
            assert rows.text[m] == (int(batch.tokens[b, at]) - 3 if inside else -1)
            assert rows.draft[m] == int(batch.drafts[b, n, k - 1]) - 3
            assert (rows.slot[m], rows.num_accepted[m]) == (k, accepted)
            assert rows.accepted[m] == (k <= accepted)
            assert rows.first_rejected[m] == (k == accepted + 1)
            assert rows.reached[m] == (k <= accepted + 1)
            assert (rows.response[m], rows.remaining[m]) == (b, batch.lengths[b] - 1 - batch.anchors[b, n])
            m += 1
    assert m == len(rows)
    torch.testing.assert_close(rows.text[rows.accepted], rows.draft[rows.accepted])
    assert int(rows.block[-1]) + 1 == int((batch.drafted > 0).sum())


@pytest.mark.parametrize("size", [1, 4, 5, 9, 100])
def test_chunks_cover_all_rows_and_cut_no_block(size: int):
    rows = some_rows()
    parts = list(rows.chunks(size))
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(len(rows)))
    for part in parts:
        assert rows.slot[part.start] == 1
        assert part.stop - part.start <= max(size, 4)
    assert list(rows[:0].chunks(size)) == [slice(0, 0)]


@pytest.mark.parametrize(("size", "ends"), [(1, [8, 22]), (14, [8, 22]), (22, [22])])
def test_chunks_of_whole_texts(size: int, ends: list[int]):
    assert [part.stop for part in some_rows().chunks(size, whole_texts=True)] == ends


def test_products_and_sums_stay_within_a_block():
    rows, values = some_rows(3), torch.tensor([2.0, 3, 4, 5, 6, 7, 8, 9])
    assert rows.prefix_product(values).tolist() == [2, 3, 12, 60, 360, 7, 56, 504]
    assert rows.prefix_sum(values).tolist() == [2, 3, 7, 12, 18, 7, 15, 24]
    assert rows.suffix_sum(values).tolist() == [2, 18, 15, 11, 6, 24, 17, 9]


def log_probs(rows: Rows, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    draft, target = torch.randn(2, len(rows), 6, generator=generator, dtype=torch.float64)
    return draft, target.log_softmax(-1)


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("d_pace", "lk_hybrid")])
def test_gradients_in_float64(name: str):
    """Those of D-PACE and of the hybrid are not their value's: both detach weights (see the next test)."""
    objective, rows = shipped(name), some_rows()
    draft, log_p = log_probs(rows)

    def value(logits: Tensor) -> Tensor:
        return torch.stack([x.sum() for x in objective.numerators(logits, log_p, rows).values()]).sum()

    assert torch.autograd.gradcheck(value, draft.requires_grad_())


@pytest.mark.parametrize("name", ["d_pace", "lk_hybrid"])
def test_gradients_with_detached_weights_are_those_of_frozen_weights(name: str):
    objective, rows = shipped(name), some_rows()
    draft, log_p = log_probs(rows)
    logits = draft.clone().requires_grad_()
    numerators = objective.numerators(logits, log_p, rows)
    (got,) = torch.autograd.grad(sum(x.sum() for x in numerators.values()), logits)
    log_q = logits.log_softmax(-1)
    known = rows.text >= 0
    if name == "d_pace":
        loss = -log_q.gather(1, rows.text.clamp(min=0)[:, None])[:, 0] * known
        with torch.no_grad():
            weight = numerators["d_pace"].detach() / loss.where(known, torch.ones_like(loss))
        frozen = weight * loss
    else:
        alpha = torch.minimum(log_q, log_p).exp().sum(-1)
        share = torch.exp(-3 * alpha.detach())
        decay = torch.exp(-(rows.slot - 1) / 4.0)
        frozen = decay * (share * (log_p.exp() * (log_p - log_q)).sum(-1) + (1 - share) * (1 - alpha))
    (expected,) = torch.autograd.grad(frozen.sum(), logits)
    torch.testing.assert_close(got, expected)


def numerators_and_gradient(
    objective: Objective, rows: Rows, hidden: tuple[Tensor, Tensor], head: torch.nn.Linear, chunk_rows: int
) -> tuple[dict[str, Tensor], Tensor]:
    mine = hidden[0].clone().requires_grad_()
    mass = log_mass(lambda x: head(x), hidden[1], 3) + 0.5 if objective.whole_vocabulary else None
    draft, target = DraftSide(head, mine), TargetSide(head, hidden[1], mass) if objective.needs_target else None
    coefficients = {name: torch.tensor(i + 0.5) for i, name in enumerate(objective.coefficients)}
    loss, sums = chunked_loss(objective, rows, draft, target, coefficients, chunk_rows)
    assert not any(value.requires_grad for value in sums.values())
    torch.testing.assert_close(loss, torch.stack([coefficients[name] * value for name, value in sums.items()]).sum())
    (gradient,) = torch.autograd.grad(loss, mine)
    return sums, gradient


@pytest.mark.parametrize("name", ["total_variation", "lk_hybrid"])
def test_gradients_of_a_trained_head_add_up_over_chunks(name: str):
    """As autograd has them with all logits at once, p being normalised over more tokens than the head's."""
    objective, rows = shipped(name), some_rows()
    torch.manual_seed(0)
    weight, unused = torch.randn(6, 5, requires_grad=True), torch.randn(3, requires_grad=True)
    hidden, of_target, theirs = torch.randn(len(rows), 5), torch.randn(len(rows), 5), torch.randn(6, 5)
    mass = (of_target @ theirs.T).logsumexp(-1) + torch.rand(len(rows))
    coefficients = {term: torch.tensor(i + 0.5) for i, term in enumerate(objective.coefficients)}
    draft = DraftSide(lambda states: states @ weight.T, hidden, [weight, unused])
    loss, _ = chunked_loss(
        objective, rows, draft, TargetSide(lambda states: states @ theirs.T, of_target, mass), coefficients, 5
    )
    numerators = objective.numerators(hidden @ weight.T, of_target @ theirs.T - mass[:, None], rows)
    whole = torch.stack([coefficients[term] * value.sum() for term, value in numerators.items()]).sum()
    torch.testing.assert_close(loss, whole)
    found, nothing = torch.autograd.grad(loss, [weight, unused])
    torch.testing.assert_close(found, *torch.autograd.grad(whole, weight))
    assert not nothing.any()


@pytest.mark.parametrize("name", NAMES)
def test_chunks_and_micro_batches_change_nothing(name: str):
    """Numerators, gradients and denominators add up over any cut between blocks."""
    objective, rows = shipped(name), some_rows()
    torch.manual_seed(0)
    head = torch.nn.Linear(5, 6).requires_grad_(False)
    hidden = (torch.randn(len(rows), 5), torch.randn(len(rows), 5))
    whole, gradient = numerators_and_gradient(objective, rows, hidden, head, 1000)
    for chunk_rows in (1, 6):
        sums, chunked = numerators_and_gradient(objective, rows, hidden, head, chunk_rows)
        torch.testing.assert_close(sums, whole)
        torch.testing.assert_close(chunked, gradient)
    cut = int((rows.slot == 1).nonzero()[3])
    parts = []
    for part in (slice(0, cut), slice(cut, len(rows))):
        these = (hidden[0][part], hidden[1][part])
        parts.append((*numerators_and_gradient(objective, rows[part], these, head, 4), rows[part]))
    torch.testing.assert_close(torch.cat([p[1] for p in parts]), gradient)
    for term, value in whole.items():
        torch.testing.assert_close(sum(p[0][term] for p in parts), value)
        denominator = objective.denominators(rows)[term].sum()
        torch.testing.assert_close(sum(objective.denominators(p[2])[term].sum() for p in parts), denominator)


def test_gradients_in_float16_are_whole_whatever_the_coefficients():
    """Their least number is 6e-8, their largest 65,504: a mean over many rows, and weights of terms, go beyond."""
    objective, rows = shipped("draft_opd"), some_rows()
    torch.manual_seed(0)
    weight, hidden = torch.randn(6, 5), torch.randn(2, len(rows), 5)

    def gradient(dtype: torch.dtype, weights: tuple[float, float], scale: float) -> Tensor:
        mine, head = hidden[0].to(dtype).requires_grad_(), Head(weight.to(dtype))
        sides = DraftSide(head, mine), TargetSide(head, hidden[1].to(dtype))
        coefficients = {name: torch.tensor(w) for name, w in zip(objective.coefficients, weights, strict=True)}
        loss, _ = chunked_loss(objective, rows, *sides, coefficients, 6)
        return torch.autograd.grad(loss * scale, mine)[0].float()

    for weights in ((1e-9, 3e-9), (1e-9, 1.0), (0.0, 2.0)):
        scale = 1 / max(weights)
        exact, coarse = (gradient(dtype, weights, scale) for dtype in (torch.float32, torch.float16))
        assert exact.abs().max() > 0.1
        torch.testing.assert_close(coarse, exact, atol=2e-3, rtol=2e-2)
    assert not gradient(torch.float32, (0.0, 0.0), 1.0).any()


def test_rows_of_unknown_most_probable_tokens_are_skipped_after_a_rejection(target: Target, batch: ReplayBatch):
    """With skip_unknown; without such rows, as on texts, the target's whole head does not run for that."""
    torch.manual_seed(1)
    drafter = DFlash(target.shape, num_layers=1, block_size=5, draft_vocab_size=40)
    drafter.set_vocabulary(torch.arange(40) * 2)
    seen = []

    class Recording(Distillation):
        def numerators(self, draft_logits: Tensor, target_log_probs: Tensor | None, rows: Rows) -> dict[str, Tensor]:
            terms = super().numerators(draft_logits, target_log_probs, rows)
            seen.append((rows, terms["divergence"].detach()))
            return terms

    module = DraftModule(target, drafter, Recording(forward_kl, decay=None, skip_unknown=True), torch.optim.SGD)
    batch = target.replay(batch, drafter.layer_ids)
    module.loss(batch)
    ((rows, terms),) = seen
    assert batch.target_hidden is not None
    best = target.head()(batch.target_hidden[batch.valid]).argmax(-1)
    known = torch.where(rows.reached, rows.text >= 0, best % 2 + best // 80 == 0)
    torch.testing.assert_close(terms != 0, known)
    assert (known != (rows.text >= 0)).any()
    module.loss(batch.without_tails())
    assert seen[1][0].argmax is None


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("source", [pytest.param("texts", marks=pytest.mark.slow), "rollouts"])
def test_a_module_takes_it_on_texts_and_rollouts_with_a_draft_vocabulary(
    name: str, source: str, target: Target, batch: ReplayBatch
):
    torch.manual_seed(1)
    drafter = DFlash(target.shape, num_layers=1, block_size=5, draft_vocab_size=40)
    drafter.set_vocabulary(torch.arange(40) * 2)
    module = DraftModule(target, drafter, shipped(name), torch.optim.SGD, chunk_rows=16)
    module.eval()
    if source == "texts":
        results = rollout(target, None, PROMPTS[:3], Decoding(max_new_tokens=12))
        texts = [r.trace for r in results]
        anchors = [torch.arange(t.prompt_length, len(t.tokens) - 1, 2) for t in texts]
        batch = target.replay(text_blocks(texts, anchors, 4), drafter.layer_ids)
    batch = target.replay(batch, drafter.layer_ids)
    loss = module.loss(batch)
    loss.backward()
    assert torch.isfinite(loss)
    assert drafter.fc.weight.grad is not None
    assert drafter.fc.weight.grad.abs().sum() > 0


def test_the_whole_head_is_counted(target: Target, batch: ReplayBatch):
    drafter = DFlash(target.shape, num_layers=1, block_size=5, draft_vocab_size=40)
    drafter.set_vocabulary(torch.arange(40) * 2)
    flops = []
    for name in ("forward_kl", "total_variation"):
        module = DraftModule(target, drafter, shipped(name), torch.optim.SGD)
        module.loss(batch)
        flops.append(module.ledger.flops["train"])
    assert flops[1] - flops[0] == 2 * target.vocab_size * target.config.hidden_size * int(batch.drafted.sum())


def test_the_exact_acceptance_length_is_that_of_an_enumeration():
    """Every sequence of sampled drafts, each accepted with probability min(1, p / q)."""
    table = start(contexts=1, slots=3, vocabulary=3)
    p, q = table.log_p[0].exp(), table.logits[0].softmax(-1)
    expected = 0.0
    for drafts in itertools.product(range(3), repeat=3):
        chance = float(torch.stack([q[k, v] for k, v in enumerate(drafts)]).prod())
        accept = [float((p[k, v] / q[k, v]).clamp(max=1)) for k, v in enumerate(drafts)]
        for r in range(4):
            stop = 1 - accept[r] if r < 3 else 1.0
            expected += chance * float(torch.tensor(accept[:r]).prod()) * stop * (r + 1)
    assert acceptance_length(table.alpha) == pytest.approx(expected, rel=1e-5)
    assert acceptance_length(Table(table.log_p, table.log_p).alpha) == pytest.approx(4.0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("source", [pytest.param("texts", marks=pytest.mark.slow), "rollouts"])
def test_it_raises_the_acceptance_length_towards_the_known_optimum(name: str, source: str, record_property):
    """From one start, in one number of steps. `make bench-objectives` prints how far each gets in more of them."""
    table = start()
    best = Table(table.log_p, table.log_p)
    end = train(shipped(name), table, source, steps=80, lr=0.15)
    for measure, least in (("hit", 0.9),) if name in SHARPENING else (("hit", 0.9), ("alpha", 0.5)):
        begin, now, top = (acceptance_length(getattr(x, measure)) for x in (table, end, best))
        record_property(measure, now)
        assert now <= top + 1e-5
        assert now - begin > least * (top - begin), f"{begin:.2f} -> {now:.2f} of {top:.2f}"
