"""The target under every mask and cache equals transformers' own forward."""

import pytest
import torch
import torch.nn.functional as F
from benchmarks.bench import as_it_comes

from draftopd.decoding.rollout import rollout
from draftopd.decoding.settings import Decoding
from draftopd.drafters.dflash import DFlash
from draftopd.drafters.eagle3 import Eagle3
from draftopd.errors import DraftError
from draftopd.target import load
from draftopd.target.cache import RaggedCache
from draftopd.target.cpu.linear import LIBRARY
from draftopd.target.model import Target
from draftopd.trace import collate
from pair import EAGLE_LAYERS, EVERY_FAMILY, FAMILIES, PROMPTS, SIZES, overfit


@pytest.fixture(params=EVERY_FAMILY)
def any_target(request) -> Target:
    return load.tiny({"model_type": request.param, **FAMILIES[request.param]})


def test_plain_decoding_equals_generate(any_target: Target):
    stock = as_it_comes(any_target)
    results = rollout(any_target, None, PROMPTS, Decoding(max_new_tokens=16, batch_size=3))
    for prompt, result in zip(PROMPTS, results, strict=True):
        expected = stock.generate(torch.tensor([prompt]), max_new_tokens=16, do_sample=False, pad_token_id=0)
        assert torch.equal(result.trace.tokens, expected[0])


def own_layers(module: torch.nn.Module) -> set[str]:
    """Modules of this package inside another."""
    return {type(m).__name__ for m in module.modules() if type(m).__module__.startswith("draftopd.target")}


def test_without_cpu_layers_the_model_is_that_of_transformers_and_writes_the_same_text(any_target: Target):
    config = any_target.config
    plain = load.tiny({"model_type": config.model_type, **FAMILIES[config.model_type]}, cpu_layers=False)
    assert own_layers(plain.model) == set()
    assert plain.model.config._attn_implementation == plain.attention == "sdpa"
    drafter = DFlash(plain.shape, 1, 4)
    assert type(plain.adopt(drafter).fc) is torch.nn.Linear
    assert plain.head().product is drafter.head(plain.head).product is F.linear
    ours, theirs = (
        rollout(t, d, PROMPTS, Decoding(16, 3)) for t, d in ((any_target, None), (plain, plain.adopt(drafter)))
    )
    assert [r.trace.tokens.tolist() for r in ours] == [r.trace.tokens.tolist() for r in theirs]


needs_x86 = pytest.mark.skipif(LIBRARY is None, reason="the layers work on x86 processors only")


@needs_x86
def test_cpu_layers_are_on_for_float32_and_off_elsewhere(target: Target):
    for drafter in (DFlash(target.shape, 1, 4), Eagle3(target.shape, 4, EAGLE_LAYERS)):
        assert own_layers(target.adopt(drafter)) == {"Linear"}
        assert torch.nn.Linear not in set(map(type, drafter.modules()))
        assert drafter.head(target.head).product is not F.linear
    assert target.cpu_layers
    assert {"Linear", "Norm"} <= own_layers(target.model)
    model = as_it_comes(target).bfloat16()
    assert not Target(model, target.tokenizer).cpu_layers
    assert own_layers(model) == set()
    with pytest.raises(DraftError, match=r"target\.cpu_layers=true needs float32 weights on the CPU"):
        Target(model, target.tokenizer, cpu_layers=True)


@needs_x86
@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("torch.__version__", "2.6.1", "2.7 <= torch < 2.15, not 2.6.1"),
        ("torch.__version__", "2.15.0a0+git1", "2.7 <= torch < 2.15, not 2.15.0a0"),
        ("platform.machine", lambda: "aarch64", "an x86 processor"),
        ("draftopd.target.cpu.linear._has", lambda *_: False, "carries MKL or oneDNN"),
    ],
)
def test_cpu_layers_are_refused_where_they_were_not_tested(monkeypatch, name, value, reason):
    monkeypatch.setattr(name, value)
    assert not load.tiny({"model_type": "llama", **SIZES}).cpu_layers
    with pytest.raises(DraftError, match=reason):
        load.tiny({"model_type": "llama", **SIZES}, cpu_layers=True)


def test_faster_layers_keep_names_and_values_of_the_weights_and_take_no_gradient(any_target: Target):
    ours, theirs = any_target.model.state_dict(), as_it_comes(any_target).state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert not any(p.requires_grad for p in any_target.parameters())


def test_transformers_generates_over_our_layers_what_it_generates_over_its_own(any_target: Target):
    ids = torch.tensor([PROMPTS[2], [0] * 4 + PROMPTS[0]])  # padded on the left
    options = {"attention_mask": (ids > 0).long(), "max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    theirs = as_it_comes(any_target).generate(ids, **options)
    assert torch.equal(any_target.model.generate(ids, **options), theirs)


def test_features_are_the_outputs_of_the_chosen_layers(any_target: Target):
    tokens = torch.tensor([PROMPTS[2]])
    hidden, features = any_target.read(tokens, layer_ids=(0, 2))
    theirs = as_it_comes(any_target)(tokens, output_hidden_states=True)
    expected = torch.cat([theirs.hidden_states[1], theirs.hidden_states[3]], -1)
    torch.testing.assert_close(features, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(any_target.head()(hidden), theirs.logits, atol=1e-4, rtol=1e-4)


def test_rollouts_are_lossless_and_replay_equals_what_each_verification_saw(any_target: Target):
    drafter = overfit(any_target, PROMPTS[:2], Decoding(max_new_tokens=16), steps=80)
    results = rollout(any_target, drafter, PROMPTS, Decoding(max_new_tokens=16, batch_size=2), keep_states=True)
    batch = collate([r.trace for r in results])
    assert (batch.accepted > 0).any()
    assert (batch.drafted - batch.accepted > 1).any()
    plain = rollout(any_target, None, PROMPTS, Decoding(max_new_tokens=16))
    assert [r.trace.tokens.tolist() for r in results] == [r.trace.tokens.tolist() for r in plain]
    replayed = any_target.replay(batch, drafter.layer_ids)
    rolled_out = collate([r.trace for r in results], [r.features for r in results], [r.target_hidden for r in results])
    read = torch.arange(batch.tokens.shape[1]) < batch.lengths[:, None] - 1
    torch.testing.assert_close(replayed.features[read], rolled_out.features[read], atol=1e-4, rtol=1e-4)
    valid = batch.valid
    torch.testing.assert_close(replayed.target_hidden[valid], rolled_out.target_hidden[valid], atol=1e-4, rtol=1e-4)


def test_a_cache_with_rows_of_different_lengths_equals_fresh_forwards(target: Target):
    cache = RaggedCache(2, 16)
    target.step(torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]]), cache)
    cache.lengths = torch.tensor([2, 4])  # the first row is cropped to two tokens
    hidden, _ = target.step(torch.tensor([[20, 21], [22, 23]]), cache)
    for row, tokens in enumerate([[5, 6, 20, 21], [9, 10, 11, 12, 22, 23]]):
        fresh, _ = target.read(torch.tensor([tokens]))
        torch.testing.assert_close(hidden[row], fresh[0, -2:], atol=1e-5, rtol=1e-5)


def test_a_restricted_head_gives_the_same_logits_of_its_tokens(target: Target):
    vocabulary = torch.tensor([3, 8, 40])
    hidden = torch.randn(4, 32)
    head = target.head(vocabulary)
    torch.testing.assert_close(head(hidden), target.head()(hidden)[:, vocabulary])
    assert head.tokens(torch.tensor([2, 0])).tolist() == [40, 3]


def test_fingerprint_tells_weights_apart_and_is_stable(target: Target):
    again = load.tiny({"model_type": "llama", **SIZES})
    other = load.tiny({"model_type": "llama", **SIZES}, seed=1)
    assert again.fingerprint == target.fingerprint != other.fingerprint


def test_a_mask_token_outside_the_table_is_refused(target: Target):
    with pytest.raises(DraftError, match="embedding table of 100 rows"):
        Target(target.model, target.tokenizer, mask_token_id=100)


def test_layers_that_cannot_roll_back_are_refused(target: Target):
    model = load.tiny({"model_type": "llama", **SIZES}).model
    model.config.layer_types = ["linear_attention"] * 4
    with pytest.raises(DraftError, match="linear_attention"):
        Target(model, target.tokenizer)


def test_a_missing_folder_is_one_clear_error(tmp_path):
    with pytest.raises(DraftError, match=r"no target at .*target\.path"):
        load.hf(str(tmp_path / "nothing"))


def test_a_saved_target_loads_from_its_folder(target: Target, tmp_path):
    target.model.save_pretrained(tmp_path)
    target.tokenizer.save_pretrained(tmp_path)
    again = load.hf(str(tmp_path), mask_token_id=target.mask_token_id)
    assert again.fingerprint == target.fingerprint
    assert again.stop_tokens.tolist() == target.stop_tokens.tolist()


def test_the_mask_token_defaults_to_the_first_row_after_the_tokenizers(target: Target):
    assert target.mask_token_id == len(target.tokenizer)
    assert DFlash(target.shape, 1, 4).mask_token_id == target.mask_token_id
