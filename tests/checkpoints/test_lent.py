"""What a drafter borrows of its target and no published folder carries along is said, with what to do."""

from typing import Any

import pytest
import torch

from draftopd.checkpoints.published import check_folder, write
from draftopd.drafters.dflash import DFlash
from draftopd.drafters.eagle3 import Eagle3
from draftopd.target import load
from draftopd.target.model import Target
from pair import EAGLE_LAYERS, FAMILIES, SIZES

LAYOUT = {"dflash": "zlab", "eagle3": "safeai"}
PHI = {key: value for key, value in SIZES.items() if key != "num_key_value_heads"}
GEMMA2 = {**FAMILIES["gemma3_text"], "query_pre_attn_scalar": 8}


def findings(kind: str, target: Target, place: Any, layout: str | None = None) -> list[Any]:
    torch.manual_seed(1)
    drafter: DFlash | Eagle3
    if kind == "dflash":
        drafter = DFlash(target.shape, 1, 4, layer_ids=[0, 1])
    else:
        drafter = Eagle3(target.shape, 4, EAGLE_LAYERS)
        drafter.initialise(target.head)
    warnings = write(drafter, place / "out", layout or LAYOUT[kind], target, "org/target")
    assert all(finding.severity == "warning" and finding.effect and finding.fix for finding in warnings)
    return warnings


EMBEDDING = "the target's embedding gives"
BIAS, FACTOR = "the target's head has a bias", "the target's head has a factor"
SAID = [
    ("llama", SIZES, [], []),
    ("qwen3", FAMILIES["qwen3"], [], []),
    # scaled by the square root of the hidden size, 32, which EAGLE-3's norm takes out; Gemma 2 also caps its logits
    ("gemma3_text", FAMILIES["gemma3_text"], [f"{EMBEDDING} 5.657 times its table's rows"], []),
    ("gemma2", GEMMA2, [EMBEDDING, "the target's head has a soft cap 30"], []),
    # its factor of the embedding is no part of the module, so drafters are trained without it
    ("granite", {**FAMILIES["granite"], "embedding_multiplier": 12.0}, [f"{FACTOR} 0.3333"], []),
    ("phi", PHI, [BIAS], []),
    ("cohere", SIZES, [f"{FACTOR} 0.0625"], []),
]


@pytest.mark.parametrize(("family", "sizes", "dflash", "eagle3"), SAID, ids=[said[0] for said in SAID])
def test_what_stays_with_the_target_is_said(family: str, sizes, dflash: list[str], eagle3: list[str], tmp_path):
    target = load.tiny({"model_type": family, **sizes})
    for kind, expected in (("dflash", dflash), ("eagle3", eagle3)):
        (tmp_path / kind).mkdir()
        found = findings(kind, target, tmp_path / kind)
        assert len(found) == len(expected), found
        assert all(finding.what.startswith(words) for finding, words in zip(found, expected, strict=True))


def test_an_embedding_that_is_no_multiple_of_its_table_is_said_for_both_kinds(tmp_path, monkeypatch):
    target = load.tiny({"model_type": "llama", **SIZES})
    embed = target.embed
    monkeypatch.setattr(target, "embed", lambda tokens: torch.nn.functional.layer_norm(embed(tokens), (32,)))
    for kind in LAYOUT:
        (tmp_path / kind).mkdir()
        (found,) = findings(kind, target, tmp_path / kind)
        assert found.what == "the target's embedding gives something else than its table's rows"
        assert "EAGLE-3" not in found.fix


def test_layouts_say_the_same(tmp_path):
    target = load.tiny({"model_type": "gemma3_text", **FAMILIES["gemma3_text"]})
    (found,) = findings("dflash", target, tmp_path, "speculators")
    assert [str(f) for f in check_folder(tmp_path / "out", target)] == [str(found)]
    assert "looks the drafter's tokens up in the bare table, as vLLM does" in found.effect
    assert "train EAGLE-3, whose norm takes the factor out" in found.fix


def test_untrained_rows_of_a_reduced_draft_vocabulary_are_said_where_engines_draft_from_all(target, folders):
    (found,) = check_folder(folders["dflash-zlab-40"], target)
    assert found.what == "draft_vocab_size 40 in z-lab's layout"
    assert "60% of which it was not trained on" in found.effect
    assert found.fix.startswith("serve it with vLLM, or train with drafter.draft_vocab_size=null")
    for engine_knows in ("dflash-speculators-40", "eagle3-safeai-40"):
        assert check_folder(folders[engine_knows], target) == []
