"""DSpark: published names, rows and positions, the Markov head, its confidence head, decoding as for EAGLE-3."""

import pytest
import torch
from benchmarks.objectives import NAMES, shipped
from torch import Tensor

from draftopd.decoding.redraft import redraft
from draftopd.decoding.rollout import rollout
from draftopd.decoding.settings import Decoding
from draftopd.drafters.dflash import DFlash
from draftopd.drafters.dspark import DSpark
from draftopd.errors import DraftError
from draftopd.objectives.confidence import WithConfidence
from draftopd.target.model import Target
from draftopd.trace import ReplayBatch, collate_rollouts, text_blocks
from draftopd.training.module import DraftModule
from pair import PROMPTS

SAMPLED = Decoding(24, temperature=1.0, rule="rejection")


@pytest.fixture
def batch(target: Target, eager_dspark: DSpark) -> ReplayBatch:
    """Two texts of unlike lengths, two blocks and one, with drafts that are not the text."""
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(4, 90, (2, 16), generator=draw)
    return ReplayBatch(
        tokens=tokens,
        anchors=torch.tensor([[6, 9], [4, 0]]),
        drafts=torch.randint(4, 90, (2, 2, 4), generator=draw),
        accepted=torch.zeros(2, 2).long(),
        drafted=torch.tensor([[4, 4], [4, 0]]),
        lengths=torch.tensor([16, 10]),
        drafter_step=torch.zeros(2).long(),
        features=target.read(tokens, eager_dspark.layer_ids)[1],
    )


def test_parameter_names_and_shapes_are_those_of_the_published_checkpoints(target: Target):
    drafter = DSpark(target.shape, num_layers=1, block_size=5, markov_rank=6, draft_vocab_size=10)
    backbone = DFlash(target.shape, num_layers=1, block_size=5, draft_vocab_size=10)
    state = drafter.state_dict()
    own = {name: tuple(state[name].shape) for name in state.keys() - backbone.state_dict().keys()}
    assert state.keys() >= backbone.state_dict().keys()
    assert own == {
        "markov_head.markov_w1.weight": (target.vocab_size, 6),
        "markov_head.markov_w2.weight": (10, 6),
        "confidence_head.proj.weight": (1, 32 + 6),
        "confidence_head.proj.bias": (1,),
    }
    with pytest.raises(DraftError, match="markov_rank"):
        DSpark(target.shape, num_layers=1, block_size=5, markov_rank=0)


def test_a_block_is_the_backbones_rows_from_its_anchor_on(target: Target, eager_dspark: DSpark, batch: ReplayBatch):
    """With K rows a block: DFlash of one slot less gives all of them but the anchor's."""
    rows = eager_dspark(batch, target.embed)[..., :32]
    backbone = DFlash(target.shape, num_layers=1, block_size=4)
    backbone.load_state_dict(
        {name: w for name, w in eager_dspark.state_dict().items() if name in backbone.state_dict()}
    )
    torch.testing.assert_close(rows[:, :, 1:], backbone(batch, target.embed))
    logits, base = eager_dspark.head(target.head)(eager_dspark(batch, target.embed)), target.head()(rows)
    before = torch.cat([batch.tokens.gather(1, batch.anchors)[..., None], batch.drafts[..., :-1]], -1)
    matrix = eager_dspark.markov_head.markov_w1.weight @ eager_dspark.markov_head.markov_w2.weight.T
    torch.testing.assert_close(logits, base + matrix[before], atol=1e-5, rtol=1e-5)


def test_a_slot_reads_the_draft_before_it_and_no_other(target: Target, eager_dspark: DSpark, batch: ReplayBatch):
    before = eager_dspark(batch, target.embed)
    batch.drafts[0, 1, 1] += 1
    changed = (eager_dspark(batch, target.embed) != before).any(-1)
    assert changed.nonzero().tolist() == [[0, 1, 2]]


def test_every_parameter_learns_and_the_confidence_head_changes_no_other(target: Target, eager_dspark: DSpark):
    """Under every objective: its loss gives a gradient to the confidence head, and the others those they had."""
    own = redraft(target, eager_dspark, texts_of(target, eager_dspark), Decoding(12))
    batch = target.replay(collate_rollouts(own), eager_dspark.layer_ids)
    torch.manual_seed(3)
    both = [DSpark(target.shape, 1, 5, 8, layer_ids=eager_dspark.layer_ids, confidence=c) for c in (True, False)]
    both[1].load_state_dict(both[0].state_dict(), strict=False)
    for name in NAMES:
        with_head, without = (DraftModule(target, d, shipped(name), torch.optim.SGD) for d in both)
        assert isinstance(with_head.objective, WithConfidence)
        gradients = []
        for module in (with_head, without):
            module.zero_grad()
            module.loss(batch).backward()
            gradients.append({n: p.grad for n, p in module.drafter.named_parameters()})
        for parameter, gradient in gradients[0].items():
            assert gradient is not None, (name, parameter)
            assert gradient.abs().sum() > 0, (name, parameter)
        for parameter, gradient in gradients[1].items():
            torch.testing.assert_close(gradients[0][parameter], gradient, msg=f"{name}: {parameter}")


def texts_of(target: Target, drafter: DSpark):
    return rollout(target, None, PROMPTS[:2], Decoding(12), keep_states=True, layer_ids=drafter.layer_ids)


def test_the_confidence_heads_loss_by_hand(target: Target, eager_dspark: DSpark, batch: ReplayBatch):
    """Cross-entropy with the chance of acceptance, weight exp(-(k - 1) / 4)."""
    module = DraftModule(target, eager_dspark, shipped("cross_entropy"), torch.optim.SGD)
    replayed = target.replay(batch, eager_dspark.layer_ids)
    _, numerators, denominators = module._parts(replayed)
    rows = eager_dspark(replayed, target.embed)[batch.valid]
    p = target.head()(replayed.target_hidden[batch.valid]).softmax(-1)
    q = eager_dspark.head(target.head)(rows).softmax(-1)
    alpha = 1 - (p - q).abs().sum(-1) / 2
    proj = eager_dspark.confidence_head.proj
    c = torch.sigmoid(rows @ proj.weight[0] + proj.bias)
    loss = (-(alpha * c.log() + (1 - alpha) * (1 - c).log())).detach()
    weight = torch.exp(-torch.arange(4) / 4).expand(3, 4).flatten()
    assert float(numerators["confidence"]) == pytest.approx(float((weight * loss).sum()), rel=1e-4)
    assert float(denominators["confidence"]) == pytest.approx(float(weight.sum()), rel=1e-5)


def test_on_texts_the_text_is_forced(target: Target, eager_dspark: DSpark):
    """SFT's case: the token before each slot is the text's."""
    (text,) = rollout(target, None, PROMPTS[:1], Decoding(12), keep_states=True, layer_ids=eager_dspark.layer_ids)
    batch = text_blocks([text.trace], [torch.tensor([8, 10])], 4, [text.features])
    embedded: Tensor = eager_dspark(batch, target.embed)[0, :, :, 32:]
    for block, anchor in enumerate((8, 10)):
        expected = eager_dspark.markov_head.markov_w1(text.trace.tokens[anchor : anchor + 4])
        assert torch.equal(embedded[block], expected)
