"""Published folders, all kinds of drafters: round trips bit for bit, conventions of each layout, what may be read."""

import pytest
import torch

from draftopd.checkpoints.findings import Findings
from draftopd.checkpoints.layouts.zlab import ZLAB
from draftopd.checkpoints.published import drafter_config, published, read, write
from draftopd.decoding.rollout import rollout
from draftopd.decoding.settings import Decoding
from draftopd.drafters.dspark import DSpark
from pair import PROMPTS
from published_folders import (
    LAYOUTS,
    VOCABULARIES,
    changed,
    config_of,
    files,
    make,
    only_new_rope,
    only_old_rope,
    tensors_of,
)

KINDS = [(kind, layout) for kind, layouts in LAYOUTS.items() for layout in layouts]
Z, S = "dflash-zlab-None", "dflash-speculators-None"
AUX = "eagle_aux_hidden_state_layer_ids"


@pytest.mark.parametrize("size", VOCABULARIES)
@pytest.mark.parametrize(("kind", "layout"), KINDS)
def test_a_round_trip_changes_no_bit(target, folders, tmp_path, kind, layout, size):
    drafter, folder = make(kind, target, size), folders[f"{kind}-{layout}-{size}"]
    found = read(folder, target)
    assert found.layout == layout
    # they lose a reduced vocabulary
    assert not [w for w in found.warnings if "z-lab's layout" not in w.what and "DeepSpec's layout" not in w.what]
    assert found.drafter.reads == drafter.reads
    group = drafter_config(folder, target)
    assert group.pop("_partial_")
    assert group == {"_target_": f"{type(drafter).__module__}.{type(drafter).__name__}", **found.spec.options()}
    weights = drafter.state_dict()
    assert found.drafter.state_dict().keys() == weights.keys()
    assert all(torch.equal(value, weights[name]) for name, value in found.drafter.state_dict().items())
    write(found.drafter, tmp_path / "again", layout, target, "org/target")
    assert files(tmp_path / "again") == files(folder)


@pytest.mark.parametrize("size", VOCABULARIES)
@pytest.mark.parametrize("kind", LAYOUTS)
def test_one_layout_becomes_the_other_and_back(target, folders, tmp_path, kind, size):
    one, other = LAYOUTS[kind]
    found = read(folders[f"{kind}-{one}-{size}"], target)
    write(found.drafter, tmp_path / "there", other, target, "org/target")
    assert files(tmp_path / "there") == files(folders[f"{kind}-{other}-{size}"])
    write(read(tmp_path / "there").drafter, tmp_path / "back", one, target, "org/target")
    assert files(tmp_path / "back") == files(folders[f"{kind}-{one}-{size}"])


@pytest.mark.parametrize(("kind", "layout"), KINDS)
def test_a_published_drafter_drafts_as_the_one_that_was_written(target, folders, kind, layout):
    ours, theirs = make(kind, target, 40), published(folders[f"{kind}-{layout}-40"], target)
    both = [rollout(target, d, PROMPTS[:2], Decoding(max_new_tokens=8)) for d in (ours, theirs)]
    assert all(torch.equal(a.trace.drafts, b.trace.drafts) for a, b in zip(*both, strict=True))


def test_each_layout_counts_layers_its_own_way(folders):
    """speculators and vLLM count the states before a layer, z-lab and SGLang 0-based outputs, as we do."""
    assert config_of(folders[Z])["dflash_config"]["target_layer_ids"] == [0, 2]
    assert config_of(folders[S])["aux_hidden_state_layer_ids"] == [1, 3]
    assert read(folders[S]).drafter.layer_ids == (0, 2)
    safeai = config_of(folders["eagle3-safeai-None"])
    assert (safeai[AUX], safeai["eagle_config"][AUX]) == ([1, 2, 3], [0, 1, 2])
    assert config_of(folders["eagle3-speculators-None"])[AUX] == [1, 2, 3]
    assert read(folders["eagle3-speculators-None"]).drafter.layer_ids == (0, 1, 2)


def test_block_size_and_mask_token_stand_where_engines_look(folders, target):
    config = config_of(folders[Z])
    for place in (config, config["dflash_config"]):
        assert (place["block_size"], place["mask_token_id"]) == (5, target.mask_token_id)
    for kind in LAYOUTS:
        section = config_of(folders[f"{kind}-speculators-None"])["speculators_config"]
        assert section["proposal_methods"][0]["speculative_tokens"] == 4
        assert section["verifier"] == {"name_or_path": "org/target", "architectures": ["LlamaForCausalLM"]}
        assert section["algorithm"] == kind


def test_a_reduced_vocabulary_travels_as_offsets(folders, target):
    ids = torch.arange(40) * 2 + 1
    for kind, layout in KINDS:
        tensors, whole = (tensors_of(folders[f"{kind}-{layout}-{size}"]) for size in (40, None))
        assert torch.equal(tensors["d2t"] + torch.arange(40), ids)
        assert torch.equal(tensors["lm_head.weight"], target.model.get_output_embeddings().weight[ids])
        assert ("t2d" in tensors) == (layout not in ("zlab", "deepspec"))
        assert "t2d" not in tensors or torch.equal(tensors["t2d"].nonzero()[:, 0], ids)
        assert not {"d2t", "t2d"} & set(whole)
        assert ("lm_head.weight" in whole) == (kind == "eagle3" or layout == "deepspec")
    assert config_of(folders["eagle3-safeai-None"])["draft_vocab_size"] == 100  # else SGLang takes the target's head


def test_a_block_of_dspark_counts_no_anchor_and_its_file_carries_what_engines_look_for(folders, target):
    for layout in LAYOUTS["dspark"]:
        config = config_of(folders[f"dspark-{layout}-None"])
        assert (config["block_size"], config["markov_rank"], config["markov_head_type"]) == (4, 6, "vanilla")
        assert config["enable_confidence_head"]
        assert config["confidence_head_with_markov"]
        assert read(folders[f"dspark-{layout}-None"], target).drafter.block_size == 5
    assert config["sample_from_anchor"]
    config, tensors = (of(folders["dspark-deepspec-None"]) for of in (config_of, tensors_of))
    assert (config["target_layer_ids"], config["mask_token_id"]) == ([0, 2], target.mask_token_id)
    assert torch.equal(tensors["embed_tokens.weight"], target.model.get_input_embeddings().weight)
    assert torch.equal(tensors["lm_head.weight"], target.model.get_output_embeddings().weight)


def test_a_drafter_without_a_confidence_head_says_so(folders, target, tmp_path):
    drafter = DSpark(target.shape, 1, 4, 6, layer_ids=[0, 2], confidence=False)
    for layout in LAYOUTS["dspark"]:
        write(drafter, tmp_path / layout, layout, target, "org/target")
        found = read(tmp_path / layout, target).drafter
        assert found.confidence_head is None
        assert found.state_dict().keys() == drafter.state_dict().keys()


def test_eagles_layer_has_the_name_that_its_layout_gives(folders):
    for layout, name in (("safeai", "midlayer."), ("speculators", "layers.0.")):
        names = {n for n in tensors_of(folders[f"eagle3-{layout}-None"]) if "." in n.removesuffix(".weight")}
        assert len(names) == 10
        assert all(n.startswith(name) for n in names)


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
    assert found.spec == read(folders[Z], target).spec
    assert found.drafter.layers[0].self_attn.rope_theta == 5e5
