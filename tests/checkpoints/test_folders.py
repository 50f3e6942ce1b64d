"""Published folders as files: where they are found, what is loaded into what, and what is not written."""

from typing import Any

import pytest
import torch

from draftopd.checkpoints.files import load as load_files
from draftopd.checkpoints.published import check_folder, load_published, published, read, write
from draftopd.checkpoints.to_transformers import to_transformers
from draftopd.drafters.dflash import DFlash
from draftopd.errors import DraftError
from draftopd.target import load
from pair import SIZES
from published_folders import OWN, config_of, make

Z = "dflash-zlab-None"


def test_weights_go_into_a_drafter_of_the_same_sizes_only(target, folders):
    drafter = make("dflash", target)
    with torch.no_grad():
        drafter.fc.weight.zero_()
    load_published(drafter, folders[Z], target)
    assert torch.equal(drafter.fc.weight, make("dflash", target).fc.weight)
    with pytest.raises(DraftError, match=r"block_size 5, not 6.*give drafter.path="):
        load_published(DFlash(target.shape, 2, 6, layer_ids=[0, 2], **OWN), folders[Z], target)
    with pytest.raises(DraftError, match=r"kind DFlash, not Eagle3"):
        load_published(make("eagle3", target), folders[Z], target)


def test_what_is_written_is_linted_first(target, tmp_path):
    with pytest.raises(DraftError, match="do not rise"):
        write(DFlash(target.shape, 1, 4, layer_ids=[2, 1]), tmp_path / "new", "zlab", target)
    assert not (tmp_path / "new").exists()
    for kind, layout, names in (
        ("dflash", "gguf", "DFlash drafters: choose zlab or speculators"),
        ("dflash", "safeai", "DFlash drafters: choose zlab or speculators"),
        ("eagle3", "zlab", "Eagle3 drafters: choose safeai or speculators"),
    ):
        with pytest.raises(DraftError, match=f"^no layout '{layout}' for {names}$"):
            write(make(kind, target), tmp_path / "new", layout, target)
    write(make("dflash", target), tmp_path / "new", "zlab", target)
    with pytest.raises(DraftError, match="not empty"):
        write(make("dflash", target), tmp_path / "new", "zlab", target)


def test_transformers_takes_no_other_kind_of_drafter(target):
    with pytest.raises(DraftError, match="transformers has no model for Eagle3 drafters"):
        to_transformers(make("eagle3", target), target)


def test_a_folder_is_for_its_own_target(folders):
    other = load.tiny({"model_type": "llama", **SIZES}, seed=5)
    with pytest.raises(DraftError, match="target fingerprint"):
        published(folders[Z], other)


def test_the_dtype_of_the_file_is_kept(target, tmp_path):
    write(make("dflash", target).to(torch.bfloat16), tmp_path / "half", "zlab", target)
    assert read(tmp_path / "half", target).drafter.fc.weight.dtype == torch.bfloat16
    assert config_of(tmp_path / "half")["dtype"] == "bfloat16"


def test_a_hub_id_is_fetched_and_a_wrong_one_is_one_line(target, folders, monkeypatch):
    def fetch(name: str, file: str) -> str:
        if name != "org/drafter":
            raise OSError(f"{name} is not a model identifier\nlisted on the hub")
        return str(folders[Z] / file)

    monkeypatch.setattr("draftopd.checkpoints.files.cached_file", fetch)
    assert read("org/drafter", target).spec.block_size == 5
    with pytest.raises(DraftError, match=r"^no drafter at 'org/other' .*: org/other is not a model identifier$"):
        read("org/other")


def test_a_place_without_a_drafter_is_one_line(tmp_path):
    with pytest.raises(DraftError, match="give a folder"):
        read(tmp_path / "nowhere")
    findings: Any = check_folder(tmp_path)
    assert [finding.what for finding in findings] == ["no config.json", "no model.safetensors"]
    assert load_files(tmp_path, findings) is None
