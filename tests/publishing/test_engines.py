"""The commands of docs/serving.md are those of the model cards, word for word."""

import re
from pathlib import Path

import pytest

from draftopd.checkpoints.spec import DrafterSpec
from draftopd.publishing.base import Base
from draftopd.publishing.engines import draft_vocabulary, recipes
from draftopd.target import load, smollm2
from pair import SIZES
from published_folders import LAYOUTS, make

PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
SMOLLM2 = Base("x/y", "~/.cache/draftopd/SmolLM2-135M-Instruct", 'load.smollm2("~/.cache/draftopd")', "float32")
QWEN = Base("Qwen/Qwen3-8B", "Qwen/Qwen3-8B", 'load.hf("Qwen/Qwen3-8B", "bfloat16")', "bfloat16")


def spec(kind: str, target, block_size: int = 8, rows: int | None = None) -> DrafterSpec:
    drafter = make(kind, target, rows)
    drafter.block_size = block_size
    return DrafterSpec.of(drafter, target, "org/target")


def blocks(page: str) -> list[str]:
    return [block.strip() for block in re.findall(r"```(?:bash|python)\n(.*?)```", page, re.DOTALL)]


def test_the_page_has_the_commands_word_for_word(target):
    dflash, larger, eagle = spec("dflash", target), spec("dflash", target, 16), spec("eagle3", target)
    vllm, _, transformers = recipes(dflash, "zlab", SMOLLM2, "my-drafter")
    assert vllm.command in blocks(PAGE)
    assert transformers.command in blocks(PAGE)
    for made, layout in ((larger, "zlab"), (eagle, "safeai")):
        vllm, sglang, _ = recipes(made, layout, QWEN, "my-drafter")
        assert sglang.command in blocks(PAGE)
        if made is larger:
            assert vllm.command in blocks(PAGE)
    (eagle_vllm, *_) = recipes(eagle, "safeai", SMOLLM2, "my-drafter")
    assert eagle_vllm.command
    assert '"method": "eagle3"' in eagle_vllm.command
    assert '"method": "eagle3"' in PAGE
    (dspark, *_) = recipes(spec("dspark", target), "deepspec", QWEN, "my-drafter")
    assert dspark.command in blocks(PAGE)


@pytest.mark.parametrize(("kind", "layout"), [(kind, layout) for kind, known in LAYOUTS.items() for layout in known])
def test_an_engine_that_cannot_serve_it_is_named_with_the_reason(target, kind, layout):
    of = {recipe.engine: recipe for recipe in recipes(spec(kind, target), layout, SMOLLM2, "out")}
    assert (of["SGLang"].command is None) == (layout == "speculators")
    assert (of["transformers"].command is None) == (kind != "dflash")
    assert all(recipe.note for recipe in of.values())


def test_names_with_spaces_and_quotes_stay_one_word(target):
    vllm, sglang, _ = recipes(spec("dflash", target), "zlab", Base(None, "a b", "", "float32"), "it's mine")
    assert vllm.command is not None
    assert "--model 'a b'" in vllm.command
    assert """"model": "it'"'"'s mine\"""" in vllm.command
    assert sglang.command is not None
    assert """--speculative-draft-model-path 'it'"'"'s mine'""" in sglang.command


def test_each_engine_says_what_it_drafts_from(target):
    whole, part = spec("dflash", target), spec("dflash", target, rows=40)
    assert list(draft_vocabulary(whole, "zlab")) == ["every engine"]
    assert draft_vocabulary(part, "zlab")["vLLM"] == "the 40 tokens, as in training"
    assert "all 100 tokens" in draft_vocabulary(part, "zlab")["SGLang, transformers"]
    assert list(draft_vocabulary(part, "speculators")) == ["vLLM", "transformers"]
    assert list(draft_vocabulary(spec("dspark", target, rows=40), "deepspec")) == ["vLLM", "SGLang"]
    assert list(draft_vocabulary(spec("eagle3", target, rows=40), "safeai")) == ["vLLM, SGLang"]


def test_a_target_is_named_as_others_find_it(tmp_path, monkeypatch):
    target = load.tiny({"model_type": "llama", **SIZES})
    monkeypatch.setenv("HOME", str(tmp_path))
    assert (Base.of(target).hub_id, Base.of(target).place) == (None, "TARGET")
    assert Base.of(target, "org/t").place == "org/t"
    folder = tmp_path / "cache" / smollm2.NAME
    folder.mkdir(parents=True)
    target.model.config.name_or_path = str(folder)
    assert (Base.of(target).hub_id, Base.of(target).place) == (None, "~/cache/SmolLM2-135M-Instruct")
    assert Base.of(target).loader == 'load.hf("~/cache/SmolLM2-135M-Instruct")'
    monkeypatch.setattr(smollm2, "is_made", lambda _: True)
    made = Base.of(target)
    assert (made.hub_id, made.licence) == ("HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0")
    assert made.loader == 'load.smollm2("~/cache")'
    target.model.config.name_or_path = "org/t"
    assert Base.of(target).loader == 'load.hf("org/t")'
