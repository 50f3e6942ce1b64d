"""The default target itself: a few steps, and every index convention on real weights."""

import copy
import json
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from draftopd.command import CONFIG_DIR
from draftopd.data.sources import encode
from draftopd.decoding.rollout import rollout
from draftopd.decoding.sampling import probabilities
from draftopd.decoding.settings import Decoding
from draftopd.drafters.dflash import DFlash
from draftopd.target.cache import RaggedCache
from draftopd.target.model import Target
from draftopd.trace import collate, text_blocks

pytestmark = pytest.mark.slow
DECODING = Decoding(max_new_tokens=48, batch_size=8)


@pytest.fixture(scope="module")
def smollm2() -> Target:
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return instantiate(compose("fit").target)


@pytest.fixture(scope="module")
def prompts(smollm2: Target) -> list[list[int]]:
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        split = instantiate(compose("fit", overrides=["prompts.test=6"]).prompts).split("test")
    return [ids for p in split if (ids := encode(p, smollm2.tokenizer)) is not None]


@pytest.fixture(scope="module")
def trained(smollm2: Target, prompts: list[list[int]]) -> DFlash:
    """A drafter that knows these texts a little, so that some drafts are accepted."""
    torch.manual_seed(0)
    drafter = DFlash(smollm2.shape, num_layers=1, block_size=6, num_taps=3, draft_vocab_size=2048)
    results = rollout(smollm2, None, prompts, DECODING, keep_states=True, layer_ids=drafter.layer_ids)
    counts = torch.bincount(torch.cat([r.trace.tokens for r in results]), minlength=smollm2.vocab_size)
    drafter.set_vocabulary(counts.sort(descending=True, stable=True).indices[:2048].sort().values)
    texts = [r.trace for r in results]
    anchors = [torch.arange(t.prompt_length, len(t.tokens) - 1) for t in texts]
    batch = text_blocks(texts, anchors, 5, [r.features for r in results if r.features is not None])
    head = smollm2.head(drafter.vocabulary)
    labels = torch.searchsorted(drafter.vocabulary, batch.drafts[batch.valid])
    optimizer = torch.optim.AdamW(drafter.parameters(), 3e-3)
    for _ in range(70):
        loss = torch.nn.functional.cross_entropy(head(drafter(batch, smollm2.embed)[batch.valid]), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return drafter


@pytest.mark.parametrize("batch_size", [1, 8])
def test_speculative_text_equals_plain_text(smollm2, trained, prompts, batch_size):
    decoding = Decoding(max_new_tokens=48, batch_size=batch_size)
    plain, fast = (rollout(smollm2, d, prompts, decoding) for d in (None, trained))
    for a, b in zip(plain, fast, strict=True):
        assert a.trace.tokens.tolist() == b.trace.check().tokens.tolist()


def test_replay_with_unchanged_weights_gives_back_the_drafts(smollm2, trained, prompts):
    results = rollout(smollm2, trained, prompts, DECODING)
    batch = smollm2.replay(collate([r.trace for r in results]), trained.layer_ids)
    head = smollm2.head(trained.vocabulary)
    with torch.no_grad():
        drafted = head.tokens(head(trained(batch, smollm2.embed)).argmax(-1))
    same = (drafted == batch.drafts)[batch.valid].float().mean()
    assert batch.accepted.any()
    assert same >= 0.999
    rejected = (batch.drafted > 0) & (batch.accepted < batch.drafted)
    row, block = rejected.nonzero(as_tuple=True)
    at_cut = batch.accepted[row, block]
    bonus = batch.tokens[row, batch.anchors[row, block] + at_cut + 1]
    assert torch.equal(smollm2.head()(batch.target_hidden[row, block, at_cut]).argmax(-1), bonus)


@pytest.mark.parametrize("rule", ["token_matching", "rejection"])
def test_above_temperature_0_acceptance_agrees_with_the_overlap(smollm2, trained, prompts, rule):
    """A draft that is reached is accepted with probability sum_v min(p, q); token matching's q is one-hot."""
    decoding = Decoding(32, batch_size=12, temperature=0.6, top_p=0.95, top_k=20, rule=rule, seed=3)
    traces = [r.trace for r in rollout(smollm2, trained, prompts * 4, decoding)]
    if rule == "token_matching":
        plain = rollout(smollm2, None, prompts * 4, decoding)
        assert [t.tokens.tolist() for t in traces] == [r.trace.tokens.tolist() for r in plain]
    batch = smollm2.replay(collate(traces), trained.layer_ids)
    slots = torch.arange(1, batch.drafts.shape[2] + 1)
    reached = batch.valid & (slots <= batch.accepted[..., None] + 1)
    accepted = (slots <= batch.accepted[..., None])[reached]
    head = smollm2.head(trained.vocabulary)
    with torch.no_grad():
        p = probabilities(smollm2.head()(batch.target_hidden[reached]), decoding)[:, trained.vocabulary]
        q = probabilities(head(trained(batch, smollm2.embed)[reached]), decoding if rule == "rejection" else Decoding())
    overlap = torch.minimum(p, q).sum(-1)
    assert abs(accepted.sum() - overlap.sum()) < 4 * (overlap * (1 - overlap)).sum().sqrt()
    assert 0.02 < accepted.float().mean() < 0.98


def test_after_crops_and_joins_the_next_logits_are_those_of_a_fresh_forward(smollm2, prompts):
    """To 1e-4 in float64, where the order of additions does not count; float32 is held by the equal texts above."""
    target = Target(copy.deepcopy(smollm2.model).double(), smollm2.tokenizer, smollm2.mask_token_id)
    cache = RaggedCache(2, 200)
    texts = [p[:40] for p in prompts[:2]]
    target.step(torch.tensor(texts), cache)
    cache.lengths = torch.tensor([40, 33])  # a crop
    joining = RaggedCache(1, 200)
    target.step(torch.tensor([prompts[2][:25]]), joining)
    joining.lengths += 25
    cache.put(torch.tensor([0]), joining)
    texts = [prompts[2][:25], texts[1][:33]]
    block = torch.tensor([prompts[3][:6], prompts[4][:6]])
    hidden, _ = target.step(block, cache)
    for i, text in enumerate(texts):
        fresh, _ = target.read(torch.tensor([[*text, *block[i].tolist()]]))
        torch.testing.assert_close(target.head()(hidden[i]), target.head()(fresh[0, -6:]), atol=1e-4, rtol=0)


def test_the_command_trains_a_few_steps_on_a_file_of_the_users(command, tmp_path, monkeypatch):
    lines = [json.dumps({"prompt": f"What is {a} plus {a + 3}? Explain briefly."}) for a in range(2, 26)]
    (tmp_path / "mine.jsonl").write_text("\n".join(lines))
    words = ["experiment=dflash_sft", "prompts=jsonl", "prompts.path=mine.jsonl", "prompts.val=4", "prompts.test=4"]
    small = ["data.decoding.max_new_tokens=16", "budget.epochs=2", "drafter.num_layers=1", "drafter.num_taps=2"]
    assert (
        command(
            *words,
            *small,
            "test.speedup_prompts=2",
            f"cache_dir={Path.home()}/.cache/draftopd",
        )
        == 0
    )
    (results,) = (tmp_path / "outputs").rglob("results.json")
    (stage,) = json.loads(results.read_text())["results"]
    assert stage["scores"]["mean"]["acceptance_length"]["mean"] >= 1.0
    assert stage["training"]["flops"] > 0
