"""A target's folder: weights that are not whole are refused by name, and what decoding does not apply is said."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from draftopd.errors import DraftError
from draftopd.target import load
from draftopd.target.model import Target
from pair import SIZES

Tensors = dict[str, Tensor]
UP = "model.layers.1.mlp.up_proj.weight"
NORM = "model.norm.weight"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, target: Target) -> Path:
    place = tmp_path_factory.mktemp("target")
    target.model.save_pretrained(place)
    target.tokenizer.save_pretrained(place)
    return place


def put(name: str, value: Tensor) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {**tensors, name: value}


def drop(*names: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: value for name, value in tensors.items() if name not in names}


def spoil(name: str, value: float) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {**tensors, name: tensors[name].clone().index_fill_(0, torch.tensor([0]), value)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop(UP), f"{UP} is missing: transformers would fill it with random numbers"),
        (drop("lm_head.weight"), "lm_head.weight is missing"),
        (drop(NORM, UP), rf"{UP} \(and 1 more\) is missing"),
        (put(UP, torch.ones(3, 4)), f"{UP} has another shape than config.json says"),
        (
            put(UP.replace("weight", "bias"), torch.ones(64)),
            "model.layers.1.mlp.up_proj.bias is in the file and no part of the model",
        ),
        (put("score.weight", torch.ones(2)), "score.weight is in the file and no part of the model"),
        (spoil(UP, float("nan")), f"{UP} holds NaN or infinite values"),
        (spoil(NORM, float("inf")), f"{NORM} holds NaN or infinite values"),
    ],
)
def test_weights_that_are_not_whole_are_refused_by_name(folder: Path, tmp_path: Path, change, message: str):
    for file in ("config.json", "generation_config.json"):
        (tmp_path / file).write_bytes((folder / file).read_bytes())
    for file in folder.glob("token*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    save_file(change(load_file(folder / "model.safetensors")), tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(DraftError, match=rf"^the target at '.*' is not whole: {message}.*; get or save it again$"):
        load.hf(str(tmp_path))


def test_weights_that_were_cut_short_are_one_line(folder: Path, tmp_path: Path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes()[: 3000 if file.suffix == ".safetensors" else None])
    with pytest.raises(DraftError, match=r"^no target at '.*' \(target\.path: a folder or a hub id\): .*header"):
        load.hf(str(tmp_path))


def test_tied_weights_are_whole(tmp_path: Path):
    tied = load.tiny({"model_type": "llama", **SIZES, "tie_word_embeddings": True})
    tied.model.save_pretrained(tmp_path)
    tied.tokenizer.save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    assert load.hf(str(tmp_path)).fingerprint == tied.fingerprint


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"repetition_penalty": 1.1}, "repetition_penalty=1.1"),
        ({"no_repeat_ngram_size": 3, "suppress_tokens": [7]}, "no_repeat_ngram_size=3, suppress_tokens=[7]"),
        ({"num_beams": 4, "min_new_tokens": 2}, "min_new_tokens=2, num_beams=4"),
        ({"do_sample": True, "temperature": 0.7, "top_p": 0.8, "typical_p": 0.9}, "typical_p=0.9"),
        ({"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "suppress_tokens": None}, None),
        ({"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95}, None),
    ],
)
def test_what_decoding_does_not_apply_is_named_in_one_line(folder, tmp_path, caplog, given, named):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": 1, "pad_token_id": 0, **given}))
    load.hf(str(tmp_path))
    if named is None:
        assert caplog.messages == []
        return
    (line,) = caplog.messages
    assert f"generation_config.json sets {named}, which is applied here neither in plain nor in speculative" in line
