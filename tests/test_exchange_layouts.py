"""Published folders: round trips bit for bit, and one line for every way in which a folder can be wrong."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import PROMPTS, SIZES
from draftopd import load
from draftopd.drafters.dflash import DFlash
from draftopd.errors import DraftError
from draftopd.exchange.findings import Findings
from draftopd.exchange.folder import load as load_files
from draftopd.exchange.published import drafter_config, lint, load_published, published, read, write
from draftopd.exchange.zlab import ZLAB
from draftopd.rollout import Decoding, rollout
from draftopd.target import Target

LAYOUTS = ["zlab", "speculators"]
VOCABULARIES = [None, 40]


def make(target: Target, draft_vocab_size: int | None = None) -> DFlash:
    torch.manual_seed(1)
    drafter = DFlash(
        target.shape, 2, 5, layer_ids=[0, 2], draft_vocab_size=draft_vocab_size, head_dim=4, rope_theta=5e5
    )
    if draft_vocab_size:
        drafter.set_vocabulary(torch.arange(draft_vocab_size) * 2 + 1)
    return drafter


@pytest.fixture(scope="module")
def folders(target: Target, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("published")
    for layout in LAYOUTS:
        for size in VOCABULARIES:
            write(make(target, size), place / f"{layout}-{size}", layout, target, "org/target")
    return {folder.name: folder for folder in place.iterdir()}


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("size", VOCABULARIES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_round_trip_changes_no_bit(target, folders, tmp_path, layout, size):
    drafter, folder = make(target, size), folders[f"{layout}-{size}"]
    found = read(folder, target)
    assert found.layout == layout
    assert found.drafter.reads == drafter.reads
    group = drafter_config(folder)
    assert group.pop("_partial_")
    assert group == {"_target_": "draftopd.drafters.dflash.DFlash", **found.sheet.options()}
    weights = drafter.state_dict()
    assert found.drafter.state_dict().keys() == weights.keys()
    assert all(torch.equal(value, weights[name]) for name, value in found.drafter.state_dict().items())
    write(found.drafter, tmp_path / "again", layout, target, "org/target")
    assert files(tmp_path / "again") == files(folder)


@pytest.mark.parametrize("size", VOCABULARIES)
def test_one_layout_becomes_the_other_and_back(target, folders, tmp_path, size):
    found = read(folders[f"zlab-{size}"], target)
    write(found.drafter, tmp_path / "there", "speculators", target, "org/target")
    assert files(tmp_path / "there") == files(folders[f"speculators-{size}"])
    write(read(tmp_path / "there").drafter, tmp_path / "back", "zlab", target, "org/target")
    assert files(tmp_path / "back") == files(folders[f"zlab-{size}"])


def test_layer_ids_are_shifted_for_speculators_alone(folders):
    assert config_of(folders["zlab-None"])["dflash_config"]["target_layer_ids"] == [0, 2]
    assert config_of(folders["speculators-None"])["aux_hidden_state_layer_ids"] == [1, 3]
    assert read(folders["speculators-None"]).drafter.layer_ids == (0, 2)


def test_block_size_and_mask_token_stand_in_both_places(folders, target):
    config = config_of(folders["zlab-None"])
    for place in (config, config["dflash_config"]):
        assert (place["block_size"], place["mask_token_id"]) == (5, target.mask_token_id)
    speculators = config_of(folders["speculators-None"])["speculators_config"]
    assert speculators["proposal_methods"][0]["speculative_tokens"] == 4
    assert speculators["verifier"] == {"name_or_path": "org/target", "architectures": ["LlamaForCausalLM"]}


def test_a_reduced_vocabulary_travels_as_offsets_with_the_rows_of_the_head(folders, target):
    ids = torch.arange(40) * 2 + 1
    for layout in LAYOUTS:
        tensors = load_file(folders[f"{layout}-40"] / "model.safetensors")
        assert torch.equal(tensors["d2t"] + torch.arange(40), ids)
        assert torch.equal(tensors["lm_head.weight"], target.model.get_output_embeddings().weight[ids])
        assert ("t2d" in tensors) == (layout == "speculators")
    assert torch.equal(tensors["t2d"].nonzero()[:, 0], ids)
    assert set(load_file(folders["zlab-None"] / "model.safetensors")) == set(make(target).state_dict())


def changed(folder: Path, tmp_path: Path, change) -> Path:
    """A copy of a folder after `change(config, tensors, copy)`; what it sets to None is dropped."""
    copy = tmp_path / "changed"
    shutil.copytree(folder, copy)
    config, tensors = config_of(copy), load_file(copy / "model.safetensors")
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    before = dict(tensors)
    change(config, tensors, copy)
    (copy / "config.json").write_text(json.dumps(config))
    if any(tensors.get(name) is not value for name, value in before.items()) or len(tensors) != len(before):
        save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    return copy


def put(*keys: str, value: Any = None):
    """Sets config[keys[0]][keys[1]]...; None drops the key."""

    def change(config, tensors, copy):
        for key in keys[:-1]:
            config = config[key]
        if value is None:
            del config[keys[-1]]
        else:
            config[keys[-1]] = value

    return change


def tensor(name: str, make_tensor):
    def change(config, tensors, copy):
        tensors[name] = make_tensor(tensors.get(name))

    return change


def drop(*names: str):
    def change(config, tensors, copy):
        for name in names:
            del tensors[name]

    return change


def truncate(config, tensors, copy):
    data = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(data[: len(data) // 2])


def pickled(config, tensors, copy):
    torch.save(dict(tensors), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()


def prefixed(config, tensors, copy):
    for name in list(tensors):
        tensors[f"model.{name}"] = tensors.pop(name)


def only_new_rope(config, tensors, copy):
    del config["rope_theta"], config["rope_scaling"]


def only_old_rope(config, tensors, copy):
    del config["rope_parameters"]


def last_layer(config, tensors, folder):
    config["dflash_config"]["target_layer_ids"] = config["trained_to_read"]["layer_ids"] = [0, 3]


def no_rope(config, tensors, copy):
    only_new_rope(config, tensors, copy)
    only_old_rope(config, tensors, copy)


def no_block_size(config, tensors, copy):
    del config["block_size"], config["dflash_config"]["block_size"]


def one_slot(config, tensors, copy):
    config["block_size"] = config["dflash_config"]["block_size"] = 1


def not_finite(value):
    return value.index_fill(0, torch.tensor([0]), float("nan"))


Z, S, R = "zlab-None", "speculators-None", "zlab-40"
FAULTS = {
    # the files
    "no config": (Z, lambda c, t, f: (f / "config.json").unlink(), "no config.json"),
    "truncated weights": (Z, truncate, "no whole safetensors file"),
    "pickle": (Z, pickled, "pytorch_model.bin is a pickle"),
    "no weights": (Z, lambda c, t, f: (f / "model.safetensors").unlink(), "no model.safetensors"),
    "several files": (Z, lambda c, t, f: (f / "model.safetensors.index.json").write_text("{}"), "several files"),
    "own mask embedding": (Z, lambda c, t, f: (f / "mask_embedding.pt").write_text(""), "mask_embedding.pt"),
    # tensors
    "missing tensor": (Z, drop("layers.1.self_attn.k_norm.weight"), "missing layers.1.self_attn.k_norm.weight"),
    "extra tensor": (Z, tensor("layers.0.self_attn.q_proj.bias", lambda _: torch.zeros(16)), "unknown layers.0"),
    "prefix": (Z, prefixed, "strip the prefix model."),
    "transposed fc": (Z, tensor("fc.weight", lambda v: v.T.contiguous()), "fc.weight is transposed"),
    "narrow fc": (Z, tensor("fc.weight", lambda v: v[:, :32].contiguous()), "reads 1 layers, config.json names 2"),
    "wrong shape": (Z, put("intermediate_size", value=96), "mlp.gate_proj.weight [64, 32] instead of [96, 32]"),
    "wrong head_dim": (Z, put("head_dim", value=8), "self_attn.q_proj.weight [16, 32] instead of [32, 32]"),
    "not finite": (Z, tensor("norm.weight", not_finite), "norm.weight not finite"),
    "quantised": (Z, tensor("fc.weight", lambda v: v.to(torch.int8)), "fc.weight of torch.int8"),
    "own head": (Z, tensor("lm_head.weight", lambda _: torch.ones(100, 32)), "lm_head.weight is not the target's"),
    "own embedding": (S, tensor("embed_tokens.weight", lambda _: torch.ones(100, 32)), "embed_tokens.weight is not"),
    # numbers of config.json
    "block sizes differ": (Z, put("block_size", value=4), "block_size is 4 in the top level, 5 in dflash_config"),
    "no block size": (Z, no_block_size, "no block_size"),
    "block size 1": (Z, one_slot, "block_size is 1"),
    "tokens against block": (Z, put("num_speculative_tokens", value=5), "num_speculative_tokens is 5 beside block"),
    "speculative tokens": (
        S,
        lambda c, t, f: c["speculators_config"]["proposal_methods"][0].update(speculative_tokens=5),
        "speculative_tokens is 5 beside block_size 5",
    ),
    "mask tokens differ": (Z, put("mask_token_id", value=3), "mask_token_id is 99 in dflash_config, 3 in"),
    "mask outside": (S, put("mask_token_id", value=100), "outside the table of 100 rows"),
    "mask is text": (S, put("mask_token_id", value="<mask>"), "mask_token_id is '<mask>'"),
    "ropes differ": (Z, put("rope_theta", value=1e4), "rope_theta is 10000.0 at the top level and 500000.0"),
    "no rope": (Z, no_rope, "no rope_theta"),
    "yarn": (Z, put("rope_scaling", value={"rope_type": "yarn", "factor": 4.0}), "rope type yarn"),
    "partial rotary": (Z, put("rope_parameters", "partial_rotary_factor", value=0.5), "partial_rotary_factor 0.5"),
    "sliding layers": (Z, put("layer_types", value=["sliding_attention"] * 2), "sliding_attention"),
    "layer types": (Z, put("layer_types", value=["full_attention"]), "is no config of transformers"),
    "biases": (Z, put("attention_bias", value=True), "attention_bias"),
    "activation": (Z, put("hidden_act", value="gelu"), "hidden_act is gelu"),
    "heads": (Z, put("num_key_value_heads", value=3), "impossible sizes"),
    "unknown model type": (Z, put("model_type", value="dflash"), "model_type 'dflash'"),
    # layers
    "one too high": (Z, put("dflash_config", "target_layer_ids", value=[1, 4]), "layer id 4 of a target of 4 layers"),
    "ids without plus one": (S, put("aux_hidden_state_layer_ids", value=[0, 2]), "one too low"),
    "aux and target ids": (Z, put("eagle_aux_hidden_state_layer_ids", value=[0, 2]), "vllm#40727"),
    "ids at the top level": (Z, put("target_layer_ids", value=[0, 1]), "[0, 2] in dflash_config and [0, 1] at"),
    "falling ids": (Z, put("dflash_config", "target_layer_ids", value=[2, 0]), "do not rise"),
    "no ids": (Z, put("dflash_config", "target_layer_ids"), "target_layer_ids is None"),
    "depth is taps": (Z, put("num_target_layers", value=2), "as TorchSpec writes it"),
    "no depth": (Z, put("num_target_layers"), "no num_target_layers"),
    # the draft vocabulary
    "ids for offsets": (R, tensor("d2t", lambda v: v + torch.arange(40)), "it seems to hold ids instead of offsets"),
    "empty map": (R, tensor("d2t", torch.zeros_like), "d2t is all zero"),
    "no map": (R, drop("d2t"), "draft_vocab_size 40 without d2t"),
    "size of the map": (R, put("draft_vocab_size", value=41), "lm_head.weight [40, 32] instead of [41, 32]"),
    "map without a size": (R, put("draft_vocab_size"), "lm_head.weight [40, 32] instead of [100, 32]"),
    "size of speculators": (S, put("draft_vocab_size"), "no draft_vocab_size"),
    "no t2d": ("speculators-40", drop("t2d"), "without t2d"),
    "other t2d": ("speculators-40", tensor("t2d", lambda v: v.roll(1)), "t2d marks other tokens"),
    "float map": (R, tensor("d2t", lambda v: v.float()), "d2t is torch.float32"),
    # another drafter, another target
    "architecture": (Z, put("architectures", value=["DFlash2DraftModel"]), "architectures is ['DFlash2DraftModel']"),
    "dflash2": (Z, put("dflash_config", "selector_rank", value=256), "DFlash2"),
    "eagle": (S, put("speculators_model_type", value="peagle"), "peagle is neither a DFlash drafter"),
    "anchor draft": (S, put("sample_from_anchor", value=True), "sample_from_anchor"),
    "no verifier": (S, put("speculators_config", "verifier"), "verifier.name_or_path"),
    "no layer config": (S, put("transformer_layer_config"), "no transformer_layer_config"),
    "fingerprint": (Z, put("target_fingerprint", value="0" * 16), "target fingerprint 0000000000000000"),
    "vocabulary": (Z, put("vocab_size", value=101), "vocab_size 101, the target's is 100"),
    "depth": (Z, put("num_target_layers", value=8), "num_target_layers 8, the target's is 4"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_folder_is_refused_by_name(target, folders, tmp_path, fault):
    name, change, expected = FAULTS[fault]
    copy = changed(folders[name], tmp_path, change)
    if fault == "no config":
        (copy / "config.json").unlink()
    with pytest.raises(DraftError) as caught:
        read(copy, target)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
    findings = lint(copy, target)
    assert findings.errors
    assert all(finding.what and finding.effect and finding.mend for finding in findings)


WARNINGS = {
    "new rope alone": (Z, only_new_rope, "rope_theta stands in rope_parameters alone"),
    "nested block size alone": (Z, put("block_size"), "block_size in dflash_config alone"),
    "tied": (Z, put("tie_word_embeddings", value=True), "tie_word_embeddings"),
    "dtype": (Z, put("dtype", value="bfloat16"), "dtype is bfloat16"),
    "mixed dtypes": (Z, tensor("norm.weight", lambda v: v.to(torch.bfloat16)), "weights of bfloat16, float32"),
    "no head rows": (R, drop("lm_head.weight"), "draft_vocab_size 40 without lm_head.weight"),
    "last layer": (Z, last_layer, "layer id 3 is the target's last layer"),
    "causal for vLLM": (S, put("sliding_window_non_causal", value=False), "sliding_window_non_causal is false"),
    "local verifier": (
        S,
        put("speculators_config", "verifier", value={"name_or_path": "/data/target", "architectures": []}),
        "verifier.name_or_path is '/data/target'",
    ),
}


@pytest.mark.parametrize("case", WARNINGS)
def test_what_only_some_engines_mind_is_a_warning(target, folders, tmp_path, case):
    name, change, expected = WARNINGS[case]
    found = read(changed(folders[name], tmp_path, change), target)
    assert any(expected in warning.what for warning in found.warnings)
    assert not any(expected in warning.what for warning in read(folders[name], target).warnings)


def test_the_config_of_a_drafter_of_z_labs_is_read():
    """The keys and values of Qwen3-8B-DFlash-b16: mask token and layers nested, block size not, the old rope schema."""
    config = {
        "architectures": ["DFlashDraftModel"],
        "auto_map": {"AutoModel": "dflash.DFlashDraftModel"},
        "attention_bias": False,
        "attention_dropout": 0.0,
        "block_size": 16,
        "bos_token_id": 151643,
        "dflash_config": {"mask_token_id": 151669, "target_layer_ids": [1, 9, 17, 25, 33]},
        "dtype": "bfloat16",
        "eos_token_id": 151645,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "layer_types": ["full_attention"] * 5,
        "max_position_embeddings": 40960,
        "max_window_layers": 5,
        "model_type": "qwen3",
        "num_attention_heads": 32,
        "num_hidden_layers": 5,
        "num_key_value_heads": 8,
        "num_target_layers": 36,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "use_sliding_window": False,
        "vocab_size": 151936,
    }
    findings = Findings()
    sheet = ZLAB.parse(config, findings)
    assert not findings
    assert sheet is not None
    assert sum(p.numel() for p in sheet.build("meta").parameters()) == 1_048_626_432
    assert (sheet.block_size, sheet.shape.mask_token_id, sheet.shape.rope_theta) == (16, 151669, 1e6)
    assert sheet.layer_ids == (1, 9, 17, 25, 33)


@pytest.mark.parametrize("change", [only_old_rope, only_new_rope])
def test_either_rope_schema_is_read(target, folders, tmp_path, change):
    found = read(changed(folders[Z], tmp_path, change), target)
    assert found.sheet == read(folders[Z], target).sheet
    assert found.drafter.layers[0].self_attn.rotary.theta == 5e5


def test_the_targets_own_head_in_the_file_is_no_fault(target, folders, tmp_path):
    head = target.model.get_output_embeddings().weight.detach().clone()
    copy = changed(folders[Z], tmp_path, tensor("lm_head.weight", lambda _: head))
    assert not lint(copy, target)
    assert [finding.severity for finding in lint(copy)] == ["warning"]


def test_no_pickle_is_opened(folders, tmp_path, monkeypatch):
    copy = changed(folders[Z], tmp_path, pickled)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("a pickle was opened"))
    with pytest.raises(DraftError, match="have its publisher save it"):
        read(copy)


def test_a_published_drafter_drafts_as_the_one_that_was_written(target, folders):
    ours, theirs = make(target), published(folders[S], target)
    for a, b in zip(
        *(rollout(target, d, PROMPTS[:2], Decoding(max_new_tokens=8)) for d in (ours, theirs)), strict=True
    ):
        assert torch.equal(a.trace.drafts, b.trace.drafts)


def test_weights_go_into_a_drafter_of_the_same_sizes_only(target, folders):
    drafter = make(target)
    with torch.no_grad():
        drafter.fc.weight.zero_()
    load_published(drafter, folders[Z], target)
    assert torch.equal(drafter.fc.weight, make(target).fc.weight)
    with pytest.raises(DraftError, match=r"block_size 5, not 6.*drafter=published"):
        load_published(DFlash(target.shape, 2, 6, layer_ids=[0, 2], head_dim=4, rope_theta=5e5), folders[Z], target)


def test_what_is_written_is_linted_first(target, tmp_path):
    with pytest.raises(DraftError, match="do not rise"):
        write(DFlash(target.shape, 1, 4, layer_ids=[2, 1]), tmp_path / "new", "zlab", target)
    assert not (tmp_path / "new").exists()
    with pytest.raises(DraftError, match="choose zlab or speculators"):
        write(make(target), tmp_path / "new", "gguf", target)
    write(make(target), tmp_path / "new", "zlab", target)
    with pytest.raises(DraftError, match="not empty"):
        write(make(target), tmp_path / "new", "zlab", target)


def test_a_folder_is_for_its_own_target(folders):
    other = load.tiny({"model_type": "llama", **SIZES}, seed=5)
    with pytest.raises(DraftError, match="target fingerprint"):
        published(folders[Z], other)


def test_the_dtype_of_the_file_is_kept(target, tmp_path):
    write(make(target).to(torch.bfloat16), tmp_path / "half", "zlab", target)
    assert read(tmp_path / "half", target).drafter.fc.weight.dtype == torch.bfloat16
    assert config_of(tmp_path / "half")["dtype"] == "bfloat16"


def test_a_hub_id_is_fetched_and_a_wrong_one_is_one_line(target, folders, monkeypatch):
    def fetch(name: str, file: str) -> str:
        if name != "org/drafter":
            raise OSError(f"{name} is not a model identifier\nlisted on the hub")
        return str(folders[Z] / file)

    monkeypatch.setattr("draftopd.exchange.folder.cached_file", fetch)
    assert read("org/drafter", target).sheet.block_size == 5
    with pytest.raises(DraftError, match=r"^no drafter at 'org/other' .*: org/other is not a model identifier$"):
        read("org/other")


def test_a_place_without_a_drafter_is_one_line(tmp_path):
    with pytest.raises(DraftError, match="give a folder"):
        read(tmp_path / "nowhere")
    findings: Any = lint(tmp_path)
    assert [finding.what for finding in findings] == ["no config.json", "no model.safetensors"]
    assert load_files(tmp_path, findings) is None
