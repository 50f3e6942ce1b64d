"""Two runs never share a folder, whatever the command and whenever they start."""

from datetime import datetime
from pathlib import Path

import hydra.core.utils
import pytest
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig

from draftopd import command as commands
from draftopd import evaluate, fit

SMOKE = ("experiment=smoke/sft", "logger=none")


@pytest.fixture(autouse=True)
def one_second(monkeypatch):
    """All commands start in the same second."""

    class Noon(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2026, 1, 2, 12)

    monkeypatch.setattr(hydra.core.utils, "datetime", Noon)


@pytest.fixture
def made(monkeypatch) -> list[Path]:
    """The folders of the runs, which do nothing but leave a checkpoint."""
    folders: list[Path] = []
    monkeypatch.setattr(commands, "check", lambda *_: None)  # of the config: it takes longer than all else here

    def run(config: DictConfig, *_: object) -> None:
        hydra_config = HydraConfig.get()
        if hydra_config.mode.name == "RUN":  # Lightning hands this on to further processes
            assert Path(hydra_config.run.dir).absolute() == Path(hydra_config.runtime.output_dir)
        folders.append(Path(config.output_dir))
        (folders[-1] / "checkpoints").mkdir(parents=True, exist_ok=True)
        (folders[-1] / "checkpoints" / "last.ckpt").touch()

    monkeypatch.setattr(fit, "build", lambda config: config)
    monkeypatch.setattr(fit, "_announce", lambda *_: None)
    monkeypatch.setattr(fit, "run_stage", run)
    monkeypatch.setattr(fit, "_report", lambda *_: [])
    return folders


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.stat().st_size}


def test_runs_of_one_second_have_folders_of_their_own(command, tmp_path, made):
    for _ in range(3):
        assert command(*SMOKE) == 0
    day = tmp_path / "outputs" / "2026-01-02"
    assert made == [day / "12-00-00", day / "12-00-00-2", day / "12-00-00-3"]
    assert sorted(day.iterdir()) == made
    assert all((folder / ".hydra" / "config.yaml").exists() for folder in made)


def test_sweeps_of_one_second_have_folders_of_their_own(command, tmp_path, made):
    for _ in range(2):
        assert command(*SMOKE, "seed=1,2", "-m") == 0
    day = tmp_path / "outputs" / "2026-01-02"
    assert made == [day / name / job for name in ("12-00-00", "12-00-00-2") for job in ("0", "1")]
    assert sorted(folder.name for folder in day.iterdir()) == ["12-00-00", "12-00-00-2"]


def test_evaluations_of_one_second_have_folders_of_their_own(command, tmp_path, monkeypatch):
    seen: list[str] = []
    (tmp_path / "a").touch()
    monkeypatch.setattr(evaluate, "evaluate", lambda config: seen.append(config.output_dir))
    for _ in range(2):
        assert command("checkpoint=a", "logger=none", main=evaluate.main) == 0
    names = [Path(folder).relative_to(tmp_path / "outputs") for folder in seen]
    assert names == [Path("2026-01-02/12-00-00-evaluate"), Path("2026-01-02/12-00-00-evaluate-2")]


@pytest.mark.parametrize("full_error", ["0", "1"])
@pytest.mark.parametrize("words", [["hydra.run.dir=a"], ["hydra.run.dir='${now:a}'"], ["hydra.sweep.dir=a", "-m"]])
def test_a_folder_with_another_runs_checkpoints_is_refused(
    command, tmp_path, monkeypatch, capsys, made, words, full_error
):
    monkeypatch.setenv("HYDRA_FULL_ERROR", full_error)
    assert command(*SMOKE, *words) == 0
    before = files(tmp_path / "a")
    capsys.readouterr()
    assert command(*SMOKE, *words) != 0
    error = capsys.readouterr().err
    assert "has another run's checkpoints" in error
    assert (len(error.splitlines()) == 1) is (full_error == "0")
    assert len(made) == 1
    if "-m" not in words:
        assert files(tmp_path / "a") == before


@pytest.mark.parametrize("words", [[], ["hydra.run.dir=outputs/mine"], ["seed=1,2", "-m"]])
def test_a_folder_that_cannot_be_made_is_one_clear_line(command, tmp_path, capsys, made, words):
    (tmp_path / "outputs").touch()
    assert command(*SMOKE, *words) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("error: cannot write outputs/")
    assert made == []


def test_a_run_goes_on_in_its_own_folder(command, made):
    assert command(*SMOKE, "hydra.run.dir=a") == 0
    assert command(*SMOKE, "hydra.run.dir=a", "resume=a/checkpoints/last.ckpt") == 0
    assert len(made) == 2


def test_further_processes_of_a_run_go_into_its_folder(command, monkeypatch, made):
    """Lightning starts them with the folder of the first."""
    assert command(*SMOKE, "hydra.run.dir=a") == 0
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    assert command(*SMOKE, "hydra.run.dir=a") == 0
    assert len(made) == 2


def test_auto_goes_on_in_the_newest_folder_of_the_same_run(command, tmp_path, capsys, made):
    for words in ((), ("seed=1",), (), ("name=other",)):
        assert command(*SMOKE, *words) == 0
    assert command(*SMOKE, "resume=auto") == 0
    assert made[4] == made[2]
    assert f"goes on from {made[2]}/checkpoints/last.ckpt" in " ".join(capsys.readouterr().out.split())
    assert len(list((tmp_path / "outputs" / "2026-01-02").iterdir())) == 4
    assert command(*SMOKE, "resume=auto") == 0
    assert made[5] == made[2]


def test_auto_starts_anew_where_there_is_no_run_to_go_on_with(command, capsys, made):
    said = "resume=auto: there is no run of this name and config to go on with; a new one starts in"
    for words in (["seed=1"], [], ["hydra.run.dir=a"]):
        assert command(*SMOKE, "resume=auto", *words) == 0
        assert said in " ".join(capsys.readouterr().out.split())
    assert len(set(made)) == 3


def test_auto_reads_what_is_finished(command, capsys, made, monkeypatch):
    assert command(*SMOKE, "hydra.run.dir=a") == 0
    (made[0] / "results.json").touch()
    monkeypatch.setattr(fit, "load", lambda path: path)
    assert command(*SMOKE, "hydra.run.dir=a", "resume=auto") == 0
    assert len(made) == 1


def test_auto_takes_no_folder_of_another_config(command, capsys, made):
    assert command(*SMOKE, "hydra.run.dir=a") == 0
    assert command(*SMOKE, "hydra.run.dir=a", "resume=auto", "seed=1") == 2
    assert "has another run's checkpoints" in capsys.readouterr().err
    assert len(made) == 1
