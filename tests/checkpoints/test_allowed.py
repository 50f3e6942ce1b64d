"""Checkpoints of strangers: whatever their config names, nothing of it runs."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import get_object, instantiate
from omegaconf import OmegaConf

from draftopd import evaluate, export, fit
from draftopd.checkpoints.allowed import NAMES, allowed
from draftopd.checkpoints.native import optimizer_state, restore
from draftopd.command import CONFIG_DIR
from draftopd.errors import DraftError
from draftopd.target import load
from pair import SIZES

READ = ("target", "drafter", "prompts", "data.decoding", "data.batching")
UNREAD = (
    *("objective", "random_objective", "data", "traces", "texts", "module", "module.optimizer", "module.budget"),
    *("trainer", "callbacks", "callbacks.checkpoint", "logger", "budget", "test", "stages", "new_group"),
)


def evil(marker: Path) -> dict[str, Any]:
    """A config that runs a command where it is instantiated."""
    return {"_target_": "torch.utils.collect_env.run", "command": f"touch {marker}"}


HIDDEN: dict[str, Callable[[dict[str, Any], dict[str, Any]], Any]] = {
    "as the group": lambda group, bad: bad,
    "as an option": lambda group, bad: {**group, "extra": bad},
    "under an old name": lambda group, bad: {**group, "extra": {**bad, "_target_": "draftopd.data.os.system"}},
    "in a list": lambda group, bad: {**group, "extra": [1, [bad]]},
    "in a tuple": lambda group, bad: {**group, "extra": (1, {"deep": (bad,)})},
    "positional": lambda group, bad: {**group, "_args_": [bad]},
    "partial": lambda group, bad: {**group, "extra": {**bad, "_partial_": True}},
    "as an interpolation": lambda group, bad: {**group, "extra": "${new_group}"},
    "in an interpolation": lambda group, bad: {**group, "extra": "${oc.env:HOME}"},
    "in itself": lambda group, bad: (group.update(extra=[group, bad]), group)[1],
    "under a number": lambda group, bad: {**group, 3: bad},
    "as bytes": lambda group, bad: {**group, "extra": b"_target_"},
}


def write(saved: dict[str, Any], path: Path, changes: dict[str, Any]) -> Path:
    """A copy of a checkpoint whose config has these parts, "data.decoding" for example."""
    config = copy.deepcopy(saved["config"])
    for place, part in changes.items():
        *groups, last = place.split(".")
        inner = config
        for group in groups:
            inner = inner.setdefault(group, {})
        inner[last] = part
    torch.save(saved | {"config": config}, path)
    return path


def part_of(config: Any, place: str) -> dict[str, Any]:
    for key in place.split("."):
        config = (config or {}).get(key)
    return copy.deepcopy(config) if isinstance(config, dict) else {}


@pytest.fixture(scope="module")
def saved(checkpoint: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(checkpoint, weights_only=True)
    return loaded


def test_the_hidden_command_would_run(tmp_path: Path):
    instantiate(evil(tmp_path / "ran"))
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("how", HIDDEN)
@pytest.mark.parametrize("place", READ)
def test_a_part_that_is_built_is_refused(tmp_path: Path, saved, place: str, how: str):
    bad = HIDDEN[how](part_of(saved["config"], place), evil(tmp_path / "ran"))
    path = write(saved, tmp_path / "a.ckpt", {place: bad, "new_group": evil(tmp_path / "ran")})
    with pytest.raises(DraftError, match=place) as caught:
        restore(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("main", "place"),
    [*((evaluate.main, place) for place in READ[::2]), *((export.main, place) for place in READ[1::2])],
)
def test_the_commands_refuse_it_in_one_line(command, tmp_path, capsys, saved, main, place: str):
    path = write(saved, tmp_path / "a.ckpt", {place: evil(tmp_path / "ran")})
    words = [f"checkpoint={path}"] if main is evaluate.main else [f"run={path}", "layout=zlab"]
    assert command(*words, "logger=none", main=main) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"'torch.utils.collect_env.run' at {place}, which may name only" in line
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "exports").exists()


WORDS = {
    "evaluate": (evaluate.main, ["checkpoint=a.ckpt", "limit=1", "speed.prompts=0"]),
    "export": (export.main, ["run=a.ckpt", "layout=zlab"]),
    "init_from": (fit.main, ["experiment=smoke/sft", "init_from=a.ckpt", "budget.steps=1", "test.speedup_prompts=0"]),
    "resume": (fit.main, ["experiment=smoke/sft", "resume=a.ckpt", "budget.epochs=1", "test.speedup_prompts=0"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", WORDS)
def test_parts_that_are_not_read_run_nothing(command, tmp_path, saved, name: str):
    """Hidden in all of them at once, and for training in those that other commands build too."""
    bad = evil(tmp_path / "ran")
    places = (*UNREAD, *READ) if WORDS[name][0] is fit.main else UNREAD
    groups = {place: part_of(saved["config"], place) for place in places}
    hidden = {place: {**group, "a": bad, "b": [(bad,)], "_args_": [bad]} for place, group in groups.items()}
    if name in ("evaluate", "export"):
        hidden["data"] |= {place: part_of(saved["config"], f"data.{place}") for place in ("decoding", "batching")}
    write(saved, tmp_path / "a.ckpt", hidden)
    main, words = WORDS[name]
    assert command(*words, "logger=none", main=main) == 0
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("extra", [{"gird": 3}, {"gird": "???"}], ids=str)
@pytest.mark.parametrize("place", READ)
def test_a_part_that_its_class_does_not_take_is_refused(tmp_path: Path, saved, place: str, extra: dict[str, Any]):
    part = part_of(saved["config"], place)
    with pytest.raises(DraftError, match=rf"a\.ckpt is not loaded: its config has .*{place}") as caught:
        restore(write(saved, tmp_path / "a.ckpt", {place: {**part, **extra}}))
    assert str(caught.value).isprintable()


LARGE = {
    "depth": ({"num_hidden_layers": 10**6}, "num_hidden_layers=1000000, and sizes of a tiny model are at most"),
    "width": ({"hidden_size": 10**9}, "hidden_size=1000000000, and sizes of a tiny model are at most"),
    "weights": ({"hidden_size": 1024, "num_hidden_layers": 64}, "weights, and a tiny model has at most"),
    "drafter": ({"intermediate_size": 10**9}, "has another shape than the config's drafter: layers.0.mlp"),
    "layers": ({"num_layers": 10**6}, "num_layers=1000000 must be a whole number"),
    "overflow": ({"intermediate_size": 2**62}, "no usable drafter"),
    "block": ({"block_size": 10**9}, "block_size=1000000000 must be a whole number"),
}


@pytest.mark.parametrize("name", LARGE)
def test_sizes_that_fill_the_memory_are_refused(tmp_path: Path, saved, name: str):
    change, expected = LARGE[name]
    place = "target.architecture" if name in ("depth", "width", "weights") else "drafter"
    path = write(saved, tmp_path / "a.ckpt", {place: {**part_of(saved["config"], place), **change}})
    with pytest.raises(DraftError, match=expected):
        restore(path)


@pytest.mark.parametrize("states", [None, {}, "states", [], [3], [[]], [{"state": {}}], torch.zeros(2)], ids=str)
def test_a_checkpoint_without_an_optimizer_has_none(tmp_path: Path, saved, states: Any):
    torch.save(saved | {"optimizer_states": states}, tmp_path / "a.ckpt")
    with pytest.raises(DraftError, match="has no optimizer: init_optimizer=true needs"):
        optimizer_state(tmp_path / "a.ckpt")


def test_what_an_older_checkpoint_does_not_say_of_batching_is_its_default(tmp_path: Path, saved):
    batching = {"_target_": "draftopd.training.datamodule.Batching", "max_prompt_length": 30}
    found = restore(write(saved, tmp_path / "a.ckpt", {"data.batching": batching})).config.data.batching
    assert (found.max_prompt_length, found.enable_thinking) == (30, None)


@pytest.mark.parametrize("missing", [*READ, "data"])
def test_a_config_without_a_part_is_no_checkpoint(tmp_path: Path, saved, missing: str):
    with pytest.raises(DraftError, match="not a checkpoint of draftopd"):
        restore(write(saved, tmp_path / "a.ckpt", {missing: None}))


@pytest.mark.parametrize("config", [None, [], "text", torch.zeros(2), {}, {"target": [1]}])
def test_any_other_config_is_no_checkpoint(tmp_path: Path, saved, config: Any):
    torch.save(saved | {"config": config}, tmp_path / "a.ckpt")
    with pytest.raises(DraftError, match="not a checkpoint of draftopd"):
        restore(tmp_path / "a.ckpt")


def remote(folder: Path) -> Path:
    """A target whose repository brings code, which leaves a file where it runs."""
    target = load.tiny({"model_type": "llama", **SIZES})
    target.model.save_pretrained(folder)
    target.tokenizer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    code = {"AutoConfig": "modeling.Evil", "AutoModelForCausalLM": "modeling.Evil"}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "evil", "auto_map": code}))
    (folder / "modeling.py").write_text(f"open({str(folder / 'ran')!r}, 'w').close()\n")
    return folder


@pytest.mark.parametrize("name", ["evaluate", "export"])
def test_remote_code_runs_only_where_the_user_asks_for_it(command, tmp_path, monkeypatch, capsys, saved, name: str):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = remote(tmp_path / "model")
    group = {"_target_": "draftopd.target.load.hf", "path": str(folder), "trust_remote_code": True}
    write(saved, tmp_path / "a.ckpt", {"target": group})
    main, words = WORDS[name]
    assert command(*words, "logger=none", main=main) == 2
    assert "which a checkpoint cannot ask for" in capsys.readouterr().err
    assert not (folder / "ran").exists()
    own = ["target=hf", f"target.path={folder}"]
    assert command(*words, *own, "logger=none", main=main) == 2
    assert not (folder / "ran").exists()
    assert command(*words, *own, "target.trust_remote_code=true", "logger=none", main=main) != 0
    assert (folder / "ran").exists()


@pytest.mark.parametrize(
    "options",
    [
        {"path": "a/b", "trust_remote_code": 1},
        {"path": "a/b", "attention": "a/kernel"},
        {"_target_": "draftopd.target.load.tiny", "architecture": {"attn_implementation": "a/kernel"}},
        {"_target_": "draftopd.target.load.tiny", "architecture": {"auto_map": {"AutoModelForCausalLM": "a.B"}}},
    ],
)
def test_every_way_to_code_of_a_repository_is_refused(tmp_path: Path, saved, options: dict[str, Any]):
    path = write(saved, tmp_path / "a.ckpt", {"target": {"_target_": "draftopd.target.load.hf", **options}})
    with pytest.raises(DraftError, match="which a checkpoint cannot ask for"):
        restore(path)


def test_a_given_target_takes_the_place_of_the_checkpoints(command, tmp_path, saved):
    group = {"_target_": "draftopd.target.load.hf", "path": "./nowhere", "trust_remote_code": True}
    write(saved, tmp_path / "a.ckpt", {"target": group})
    main, words = WORDS["export"]
    assert command(*words, "logger=none", main=main) == 2
    target = OmegaConf.create(saved["config"]["target"])
    given = [f"target.architecture.{key}={value}" for key, value in target.architecture.items() if key != "model_type"]
    assert command(*words, "target=tiny", *given, "logger=none", main=main) == 0


@pytest.mark.parametrize(
    "name", ["../../gone", "/gone", "..", "a/b", "a\nb", "x" * 999, None, {"a": 1}, "${unused:a}", "???"]
)
def test_a_name_does_not_leave_the_folder_of_exports(command, tmp_path, saved, name: Any):
    write(saved, tmp_path / "a.ckpt", {"name": name})
    before = set(tmp_path.iterdir())
    main, words = WORDS["export"]
    assert command(*words, "logger=none", main=main) == 0
    assert set(tmp_path.iterdir()) - before == {tmp_path / "exports"}
    (folder,) = (tmp_path / "exports").iterdir()
    assert (folder / "config.json").is_file()


class Touch:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("name", WORDS)
def test_no_message_tells_to_load_what_can_run_code(command, tmp_path, capsys, saved, name: str):
    torch.save(saved | {"state_dict": Touch(tmp_path / "ran")}, tmp_path / "a.ckpt")
    main, words = WORDS[name]
    assert command(*words, "logger=none", main=main) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "not a checkpoint of draftopd" in line
    assert "weights_only" not in line
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("place", ["target", "drafter", "prompts"])
def test_every_shipped_choice_is_read_back(saved: dict[str, Any], place: str):
    folder = CONFIG_DIR / place
    for file in sorted(folder.rglob("*.yaml")):
        choice = file.relative_to(folder).with_suffix("")
        if choice.name in ("common", "published"):  # not for use by themselves
            continue
        words = [f"{place}={choice}", f"++{place}.path=a"] if "path: ???" in file.read_text() else [f"{place}={choice}"]
        with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            part = OmegaConf.to_container(compose("fit", [*words, "output_dir=out"]), resolve=True)[place]  # type: ignore[index,call-overload]
        read = allowed({**saved["config"], place: part}, Path("a.ckpt"))[place]
        assert read._target_ == part["_target_"]


def test_the_list_is_that_of_the_config_groups():
    """What a shipped choice of these groups builds may be named, and is there."""
    shipped = {place: set[str]() for place in ("target", "drafter", "prompts")}
    for place, names in shipped.items():
        for file in (CONFIG_DIR / place).rglob("*.yaml"):
            for line in file.read_text().splitlines():
                if "_target_:" in line and not line.startswith("#"):
                    names.add(line.partition("_target_:")[2].strip())
    assert shipped == {place: set(NAMES[place]) for place in shipped}
    assert all(callable(get_object(name)) for names in NAMES.values() for name in names)
