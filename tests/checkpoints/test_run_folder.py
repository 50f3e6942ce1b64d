"""The folder of a run: made for it alone, and never another run's."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from draftopd.checkpoints.run_folder import claim, last_config, unused
from draftopd.errors import DraftError

STAGES = {"sft": {"experiment": "smoke/sft"}}


def config(**values: Any) -> DictConfig:
    return OmegaConf.create({"name": "a", "logger": None, "resume": None, "stages": None, **values})


def checkpoint(path: Path) -> Path:
    path.parent.mkdir(parents=True)
    path.touch()
    return path


def other_process(act: Callable[[], Any]) -> tuple[int, int]:
    """A process that does something, reports a byte and waits for its end: its id, and where the byte comes."""
    here, there = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            kept = act()
            os.write(there, b"+")
            signal.pause()
            del kept
        finally:
            os._exit(0)
    os.close(there)
    return process, here


def end(process: int) -> None:
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)


def test_every_call_makes_a_folder_of_its_own(tmp_path: Path):
    name = str(tmp_path / "new" / "12-00-00")
    assert [unused(name) for _ in range(3)] == [name, f"{name}-2", f"{name}-3"]


def test_processes_that_start_together_get_folders_of_their_own(tmp_path: Path):
    name = str(tmp_path / "new" / "12-00-00")
    processes = [other_process(lambda: Path(unused(name), "mine").touch(exist_ok=False)) for _ in range(6)]
    assert [os.read(pipe, 1) for _, pipe in processes] == [b"+"] * 6
    for process, _ in processes:
        end(process)
    folders = list((tmp_path / "new").iterdir())
    assert len(folders) == 6
    assert all((folder / "mine").exists() for folder in folders)


def test_one_run_at_a_time_and_a_killed_one_lets_go(tmp_path: Path):
    process, pipe = other_process(lambda: claim(tmp_path / "a", config()))
    assert os.read(pipe, 1) == b"+"
    with pytest.raises(DraftError, match="another run is at work in") as caught:
        claim(tmp_path / "a", config())
    assert "\n" not in str(caught.value)
    end(process)
    lock = claim(tmp_path / "a", config())
    assert claim(tmp_path / "a", config()) is lock  # by this process it may be taken again


@pytest.mark.parametrize("name", ["checkpoints/last.ckpt", "checkpoints/mine.ckpt", "sft/checkpoints/best.ckpt"])
@pytest.mark.parametrize("earlier", [None, config(name="another")])
@pytest.mark.parametrize("stages", [None, STAGES])
def test_another_runs_checkpoints_are_refused(tmp_path: Path, name: str, earlier: DictConfig | None, stages: Any):
    found = checkpoint(tmp_path / "a" / name)
    with pytest.raises(DraftError, match="has another run's checkpoints") as caught:
        claim(tmp_path / "a", config(stages=stages), earlier)
    assert str(found) in str(caught.value)
    assert "hydra.run.dir=" in str(caught.value)


@pytest.mark.parametrize("name", ["results.json", "fit.log", "checkpoints/notes.txt", "sft/texts/00000.safetensors"])
def test_a_folder_without_checkpoints_can_be_used(tmp_path: Path, name: str):
    checkpoint(tmp_path / "a" / name)
    claim(tmp_path / "a", config())


def test_a_run_goes_on_in_its_own_folder_only(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own, other = (checkpoint(tmp_path / name / "checkpoints" / "last.ckpt") for name in ("a", "b"))
    for resume in (own, "a/checkpoints/last.ckpt", tmp_path / "b" / ".." / "a" / "checkpoints" / "last.ckpt"):
        claim(tmp_path / "a", config(resume=str(resume)))
    for resume in (other, "b/checkpoints/last.ckpt", tmp_path / "a" / ".." / "b" / "checkpoints" / "last.ckpt"):
        with pytest.raises(DraftError, match="resume="):
            claim(Path("a"), config(resume=str(resume)))
    with pytest.raises(DraftError, match="neither a checkpoint file"):
        claim(tmp_path / "a", config(resume="nothing.ckpt"))


def test_a_command_of_several_stages_goes_on_where_it_was(tmp_path: Path):
    checkpoint(tmp_path / "a" / "sft" / "checkpoints" / "last.ckpt")
    claim(tmp_path / "a", config(stages=STAGES), config(stages=STAGES))
    claim(tmp_path / "a", config(stages=STAGES, only=["sft"]), config(stages=STAGES))  # one part of them
    with pytest.raises(DraftError, match="go on with the same command"):
        claim(tmp_path / "a", config(stages=STAGES), config())


def test_a_job_that_was_queued_again_goes_on(tmp_path: Path):
    """Lightning saves hpc_ckpt_1.ckpt where a cluster takes the machine away."""
    checkpoint(tmp_path / "a" / "checkpoints" / "last.ckpt")
    (tmp_path / "a" / "hpc_ckpt_1.ckpt").touch()
    claim(tmp_path / "a", config(), config())
    with pytest.raises(DraftError, match="another run's"):
        claim(tmp_path / "a", config(seed=1), config())


def test_the_last_config_is_the_one_that_hydra_saved(tmp_path: Path):
    assert last_config(tmp_path) is None
    saved = config(seed="${name}", lr=6.0e-4, names=["1e-3", "null", "a: b"])
    (tmp_path / ".hydra").mkdir()
    OmegaConf.save(saved, tmp_path / ".hydra" / "config.yaml")
    again = last_config(tmp_path)
    assert again is not None
    assert OmegaConf.to_container(again) == OmegaConf.to_container(saved)


def test_left_overs_of_killed_saves_are_removed_at_the_next_start(tmp_path: Path):
    folder, name = tmp_path / "a", ".last.ckpt.01234567.part"
    left = [checkpoint(folder / place / name / "last.ckpt") for place in ("new", "checkpoints", "sft/checkpoints")]
    others = [checkpoint(folder / place / "last.ckpt") for place in ("b.part", "c/d/.e.01234567.part")]
    claim(folder, config())
    assert [path.exists() for path in left] == [False] * 3
    assert [path.exists() for path in others] == [True] * 2


def test_a_resumed_run_removes_them_beside_its_checkpoint_unless_a_run_is_at_work_there(tmp_path: Path):
    last = checkpoint(tmp_path / "a" / "sft" / "checkpoints" / "last.ckpt")
    left = last.with_name(".last.ckpt.01234567.part")
    left.mkdir()
    words = config(resume=str(last))
    claim(tmp_path / "b", words)
    assert left.exists()  # no folder of a run that we know
    process, pipe = other_process(lambda: claim(tmp_path / "a", words))
    assert os.read(pipe, 1) == b"+"
    left.mkdir(exist_ok=True)
    claim(tmp_path / "b", words)
    assert left.exists()
    end(process)
    claim(tmp_path / "b", words)
    assert not left.exists()


def test_the_message_names_the_checkpoint_to_go_on_with(tmp_path: Path):
    for name in ("best", "last"):
        (tmp_path / "checkpoints").mkdir(exist_ok=True)
        (tmp_path / "checkpoints" / f"{name}.ckpt").touch()
    with pytest.raises(DraftError, match=f"go on with resume={tmp_path}/checkpoints/last.ckpt"):
        claim(tmp_path, config())
    with pytest.raises(DraftError, match="go on with resume=auto"):
        claim(tmp_path, config(), config())


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "a"):
        with pytest.raises(DraftError, match=r"cannot write .*hydra\.run\.dir"):
            claim(folder, config())
