from collections import namedtuple
from contextlib import contextmanager

import pytest
import torch

from draftopd.data import storage, writers
from draftopd.data import texts as texts_module
from draftopd.data.texts import TextCache, Texts
from draftopd.decoding.rollout import rollout
from draftopd.decoding.settings import Decoding
from draftopd.errors import DraftError
from draftopd.target.model import Target
from pair import PROMPTS, full_disk

DECODING = Decoding(max_new_tokens=12)


def cache(folder, dtype: str | None = "float32") -> TextCache:
    return TextCache(str(folder), features_dtype=dtype, shard_size=2)


def test_texts_are_the_targets_own_and_bring_its_features(target: Target, tmp_path):
    texts = cache(tmp_path).open(target, PROMPTS, DECODING, (1, 3))
    expected = rollout(target, None, PROMPTS, DECODING, keep_states=True, layer_ids=(1, 3))
    for i, result in enumerate(expected):
        assert torch.equal(texts[i].tokens, result.trace.tokens)
        torch.testing.assert_close(texts.features(i), result.features, atol=1e-4, rtol=1e-3)


def test_a_second_process_reads_what_the_first_wrote(target: Target, tmp_path, monkeypatch):
    first = cache(tmp_path).open(target, PROMPTS, DECODING, (1,))
    first.write(len(PROMPTS))
    monkeypatch.setattr(writers, "rollout", lambda *a, **k: pytest.fail("written again"))
    again = cache(tmp_path).open(target, PROMPTS, DECODING, (1,))
    assert [again[i].tokens.tolist() for i in range(5)] == [first[i].tokens.tolist() for i in range(5)]


def test_an_interrupted_shard_leaves_nothing_and_the_rest_stays(target: Target, tmp_path, monkeypatch):
    texts = cache(tmp_path).open(target, PROMPTS, DECODING, (1,))
    texts.write(2)
    monkeypatch.setattr(storage, "save_file", lambda state, path: (path.write_bytes(b"half"), 1 / 0))
    with pytest.raises(ZeroDivisionError):
        texts.write(4)
    assert sorted(p.name for p in texts.folder.iterdir()) == ["00000.safetensors", "00000.sha256", "recipe.json"]
    monkeypatch.undo()
    shown = []

    @contextmanager
    def progress(title, count):
        shown.extend([title, count])
        yield shown.append

    monkeypatch.setattr(texts_module, "progress", progress)
    cache(tmp_path).open(target, PROMPTS, DECODING, (1,), "title").write(5)
    assert shown[:2] == ["title", 3]  # the finished shard is not written again
    assert sum(shown[2:]) == 3


@pytest.mark.parametrize("change", ["prompts", "length", "layers", "dtype"])
def test_another_recipe_gets_another_folder(target: Target, tmp_path, change):
    base = cache(tmp_path).open(target, PROMPTS, DECODING, (1,)).folder
    other = {
        "prompts": lambda: cache(tmp_path).open(target, PROMPTS[:-1], DECODING, (1,)),
        "length": lambda: cache(tmp_path).open(target, PROMPTS, Decoding(max_new_tokens=13), (1,)),
        "layers": lambda: cache(tmp_path).open(target, PROMPTS, DECODING, (2,)),
        "dtype": lambda: cache(tmp_path, "bfloat16").open(target, PROMPTS, DECODING, (1,)),
    }[change]()
    assert other.folder != base


def test_only_ids_store_no_features(target: Target, tmp_path):
    texts = cache(tmp_path, None).open(target, PROMPTS, DECODING, (1,))
    assert texts.features(0) is None
    assert texts[0].response_length > 0


def test_a_full_disk_is_refused_before_anything_is_written(target: Target, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(texts_module.shutil, "disk_usage", lambda path: usage(10, 10, 0))
    with pytest.raises(DraftError, match=r"0\.00 GB are free.*cache_dir"):
        cache(tmp_path).open(target, PROMPTS, DECODING, (1,))


def test_a_disk_that_fills_up_while_writing_is_one_clear_error(target: Target, tmp_path):
    texts = cache(tmp_path).open(target, PROMPTS, DECODING, (1,))
    with full_disk(), pytest.raises(DraftError, match=r"00000\.safetensors.*cache_dir to another disk"):
        texts.write(2)
    assert [p.name for p in texts.folder.iterdir()] == ["recipe.json"]
    assert texts[0].response_length > 0  # with room again it is written


@pytest.mark.parametrize("damage", ["a flipped bit", "a lost end", "no digest"])
def test_a_damaged_file_is_named_and_written_again_when_it_is_gone(target: Target, tmp_path, damage: str):
    def opened():
        return cache(tmp_path).open(target, PROMPTS, DECODING, (1,))

    wanted = opened()
    wanted.write(2)
    (path,) = wanted.folder.glob("*.safetensors")
    content = bytearray(path.read_bytes())
    if damage == "a flipped bit":
        content[-5] ^= 1
        path.write_bytes(content)
    elif damage == "a lost end":
        path.write_bytes(content[:-5])
    else:
        path.with_suffix(".sha256").unlink()
    for read in (Texts.features, Texts.__getitem__):
        with pytest.raises(DraftError, match=r"00000\.safetensors.*delete it") as caught:
            read(opened(), 1)
        assert "\n" not in str(caught.value)
    path.unlink()
    assert opened()[1].tokens.tolist() == wanted[1].tokens.tolist()


def test_a_file_is_checked_once(target: Target, tmp_path, monkeypatch):
    texts, checked = cache(tmp_path).open(target, PROMPTS, DECODING, (1,)), []
    monkeypatch.setattr(storage, "check", checked.append)
    for i in (0, 1, 0, 2):
        texts.features(i)
    assert [path.name for path in checked] == ["00000.safetensors", "00001.safetensors"]


def test_features_are_memory_mapped_and_not_loaded(target: Target, tmp_path):
    texts = cache(tmp_path).open(target, PROMPTS, DECODING, (1,))
    features = texts.features(0)
    assert features is not None
    assert features.untyped_storage().nbytes() > features.nbytes  # a view of the whole file
