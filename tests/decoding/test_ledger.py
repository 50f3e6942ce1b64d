"""The ledger's formulas against the operations that really ran.

Matrix products of linear layers are those that torch's FlopCounterMode counts as `mm`. It counts attention with the
pairs that a mask hides; the ledger does not, so the visible pairs are counted here from the masks of every call. The
angles of rotary positions (`bmm` in transformers) are in neither. What remains is equal to the last operation, rows of
complete responses and padding of prompts included. Only training batches are counted without their padding.
"""

import pytest
import torch
import torch.nn.functional as F
from benchmarks.objectives import shipped
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from draftopd.decoding.ledger import Ledger
from draftopd.decoding.redraft import redraft
from draftopd.decoding.rollout import rollout
from draftopd.decoding.settings import Decoding
from draftopd.drafters.base import Drafter
from draftopd.drafters.dflash import DFlash
from draftopd.drafters.dflash2 import DFlash2
from draftopd.drafters.dspark import DSpark
from draftopd.drafters.eagle3 import Eagle3
from draftopd.target.cpu.linear import LIBRARY, MKL, OneDNN
from draftopd.target.model import Target
from draftopd.trace import Rollout, collate_rollouts
from draftopd.training.module import DraftModule
from pair import EAGLE_LAYERS, PROMPTS

PROMPT = [[5 + i * 3 % 80 for i in range(30)]]
EXACT = 1e-9


def product_flops(x: torch.Size, weight: torch.Size, *args, out_shape: torch.Size) -> int:
    return 2 * out_shape.numel() * x[-1]


OTHERS = {
    MKL: [torch.ops.mkl._mkl_linear] if torch.backends.mkl.is_available() else [],
    OneDNN: [torch.ops.mkldnn._linear_pointwise] if torch.backends.mkldnn.is_available() else [],
    type(None): [],
}[type(LIBRARY)]
"""products on this processor besides torch's own"""
PRODUCTS = (torch.ops.aten.mm, torch.ops.aten.addmm, *OTHERS)


@pytest.fixture(params=["dflash", "dspark", "dflash2", "eagle3"])
def drafter(request, target: Target) -> Drafter:
    """Untrained: hardly a draft is accepted, so that every block but a cut one has a tail."""
    torch.manual_seed(1)
    if request.param == "dflash":
        return DFlash(target.shape, num_layers=2, block_size=5)
    if request.param == "dflash2":
        return DFlash2(target.shape, num_layers=2, block_size=5, selector_rank=6)
    if request.param == "dspark":
        return DSpark(target.shape, num_layers=2, block_size=5, markov_rank=6)
    drafter = Eagle3(target.shape, 5, EAGLE_LAYERS)
    drafter.initialise(target.head)
    return drafter


@pytest.fixture
def measure(monkeypatch):
    """Runs a function: its result, FLOPs of linear layers, FLOPs of the visible pairs of attention."""
    attend = F.scaled_dot_product_attention
    pairs = []

    def counting(query, key, value, *args, attn_mask, **options):
        every = query.shape[0] * query.shape[1] * query.shape[2] * key.shape[2]  # without a mask all are visible
        seen = every if attn_mask is None else float(attn_mask.expand(*query.shape[:3], -1).sum())
        pairs.append(4 * query.shape[-1] * seen)
        return attend(query, key, value, *args, attn_mask=attn_mask, **options)

    def run(function):
        pairs.clear()
        monkeypatch.setattr(F, "scaled_dot_product_attention", counting)
        with (
            sdpa_kernel(SDPBackend.MATH),
            FlopCounterMode(display=False, custom_mapping=dict.fromkeys(OTHERS, product_flops)) as counter,
        ):
            result = function()
        monkeypatch.setattr(F, "scaled_dot_product_attention", attend)
        counts = counter.get_flop_counts()["Global"]
        return result, sum(counts[product] for product in PRODUCTS if product in counts), sum(pairs)

    return run


def test_plain_decoding_is_prefill_and_verifications(target: Target, measure):
    ledger = Ledger()
    _, products, attention = measure(lambda: rollout(target, None, PROMPT, Decoding(12), ledger=ledger))
    assert ledger.flops["prefill"] + ledger.flops["verify"] == pytest.approx(products + attention, rel=EXACT)
    assert ledger.target_tokens == 30 + 11  # the last token is not read


def test_the_formula_of_a_written_text_is_plain_decoding_and_the_shared_opening_is_read_once(target: Target):
    opening, ends = [5, 6, 7, 8, 9], [[10, 11], [12, 13]]
    ran, formula = Ledger(), Ledger()
    prompts = [[*opening, *end] for end in ends]
    results = rollout(target, None, prompts, Decoding(max_new_tokens=8, batch_size=2), ledger=ran)
    assert [result.trace.response_length for result in results] == [8, 8]  # no row waits for the other
    formula.prefill(target, rows=1, width=len(opening), length=len(opening))
    for result in results:
        formula.write(target, result.trace, shared=len(opening))
    assert formula.training_flops == pytest.approx(ran.training_flops, rel=EXACT)
    assert formula.target_tokens == ran.target_tokens


def test_a_speculative_rollout(target: Target, drafter: Drafter, measure):
    ledger = Ledger()
    (result,), products, attention = measure(lambda: rollout(target, drafter, PROMPT, Decoding(12), ledger=ledger))
    assert sum(ledger.flops.values()) == pytest.approx(products + attention, rel=EXACT)
    assert ledger.flops["draft"] > 0
    blocks = len(result.trace.anchors)
    assert ledger.target_tokens == 30 + 5 * blocks
    assert ledger.tokens["draft"] == 4 * blocks
    assert ledger.tokens["decode"] == 11
    assert 0 < ledger.seconds["draft"] + ledger.seconds["verify"] < ledger.seconds["decode"]


def test_a_batch_with_a_shared_opening_and_rows_of_different_lengths(target: Target, drafter: Drafter, measure):
    """Padding of prompts is counted, because it is computed."""
    prompts = [[7, 8, 9, *prompt] for prompt in PROMPTS]
    ledger = Ledger()
    run = lambda: rollout(target, drafter, prompts, Decoding(12, 3), ledger=ledger)  # noqa: E731
    _, products, attention = measure(run)
    assert sum(ledger.flops.values()) == pytest.approx(products + attention, rel=EXACT)


def test_complete_responses_that_wait_are_computed_and_counted(target: Target, eager_drafter: DFlash, measure):
    """The first of five to end waits for a second one: a batch is made smaller by a quarter of its rows."""
    ledger = Ledger()
    run = lambda: rollout(target, eager_drafter, PROMPTS, Decoding(24), ledger=ledger)  # noqa: E731
    results, products, attention = measure(run)
    assert sum(ledger.flops.values()) == pytest.approx(products + attention, rel=EXACT)
    assert ledger.tokens["draft"] > 4 * sum(len(r.trace.anchors) for r in results)


def texts(target: Target, drafter: Drafter) -> list[Rollout]:
    return rollout(target, None, PROMPT, Decoding(12), keep_states=True, layer_ids=drafter.layer_ids)


def test_redrafting_texts_of_different_lengths(target: Target, drafter: Drafter, measure):
    options = {"keep_states": True, "layer_ids": drafter.layer_ids}
    given, ledger = rollout(target, None, PROMPTS, Decoding(12), **options), Ledger()
    again, products, attention = measure(lambda: redraft(target, drafter, given, Decoding(12), ledger=ledger))
    assert dict(ledger.flops) == {"draft": pytest.approx(products + attention, rel=EXACT)}
    assert ledger.tokens["redraft"] == sum(r.trace.response_length - 1 for r in given)
    assert ledger.tokens["draft"] == 4 * sum(len(r.trace.anchors) for r in again)
    assert ledger.metrics()["ledger/tokens_per_second/draft"] > 0


def test_replay_and_training(target: Target, drafter: Drafter, measure):
    """With the real step: replay, forward and backward under an objective that reads the target."""
    batch = collate_rollouts(redraft(target, drafter, texts(target, drafter), Decoding(12)))
    module = DraftModule(target, drafter, shipped("draft_opd"), torch.optim.SGD)
    assert (batch.drafted == 4).all()  # no block is cut
    assert (batch.accepted < 3).any()  # tails of more than the first rejected draft

    replayed, products, attention = measure(lambda: target.replay(batch, drafter.layer_ids))
    module.ledger.replay(target, batch)
    assert module.ledger.flops["replay"] == pytest.approx(products + attention, rel=EXACT)

    _, products, attention = measure(lambda: module.loss(replayed).backward())
    assert module.ledger.flops["train"] == pytest.approx(products + 3 * attention, rel=EXACT)


def test_rates_are_tokens_by_seconds_of_a_phase():
    ledger = Ledger()
    ledger.tokens |= {"prefill": 30.0, "draft": 8.0}
    ledger.seconds |= {"prefill": 2.0, "validate": 1.0}
    rates = {name: value for name, value in ledger.metrics().items() if "tokens_per_second" in name}
    assert rates == {"ledger/tokens_per_second/prefill": 15.0}
