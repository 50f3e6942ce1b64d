"""Files that take the place of good ones: after a kill or a fault the old file is whole, or the new one is.

Each kind of file that the package replaces: checkpoints, results, texts, exports.
"""

import errno
import os
import resource
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from draftopd.checkpoints import files
from draftopd.checkpoints.files import Contents
from draftopd.checkpoints.saving import WholeCheckpoints
from draftopd.data import storage
from draftopd.errors import DraftError
from pair import full_disk
from runs import UNTIMED

SIZE = 20_000  # bytes at least of a new file


def values(number: float) -> torch.Tensor:
    return torch.full((SIZE // 4,), number)


def text(path: Path, number: float) -> None:
    with storage.replacing(path) as part:
        part.write_text(f"{number} " * SIZE)


def checkpoint(path: Path, number: float) -> None:
    WholeCheckpoints().save_checkpoint({"state_dict": {"a": values(number)}}, path)


def texts(path: Path, number: float) -> None:
    storage.save({"a": values(number)}, path)


def exported(path: Path, number: float) -> None:
    files.save(path, Contents({"number": number}, {"a": values(number)}, {}))


def read_export(path: Path) -> float:
    assert sorted(file.name for file in path.iterdir()) == [files.CONFIG, files.WEIGHTS]
    return float(load_file(path / files.WEIGHTS)["a"].mean())


def read_texts(path: Path) -> float:
    storage.check(path)
    return float(load_file(path)["a"].mean())


KINDS: dict[str, tuple[Callable[[Path, float], None], Callable[[Path], float]]] = {
    "results.json": (text, lambda path: float(set(path.read_text().split()).pop())),
    "last.ckpt": (checkpoint, lambda path: float(torch.load(path, weights_only=True)["state_dict"]["a"].mean())),
    "00000.safetensors": (texts, read_texts),
    "exported": (exported, read_export),
}
REPLACED = [name for name in KINDS if name not in ("00000.safetensors", "exported")]  # these are only ever new


def die(*_: Any, **__: Any) -> None:
    os._exit(1)


def killed(where: str, act: Callable[[], None]) -> bool:
    """Lets a process of its own do something; whether it was killed."""
    process = os.fork()
    if process == 0:
        if where == "while it writes":  # the kernel kills at the first byte beyond the limit
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE // 2, SIZE // 2))
        elif where != "never":
            setattr(os, where, die)
        try:
            act()
        finally:
            os._exit(0)
    return os.waitpid(process, 0)[1] != 0


@pytest.mark.parametrize("where", ["while it writes", "fsync", "replace"])
@pytest.mark.parametrize("name", KINDS)
def test_a_killed_save_leaves_what_was_there_before(tmp_path: Path, name: str, where: str):
    write, read = KINDS[name]
    path = tmp_path / "folder" / name
    path.parent.mkdir()
    if name in REPLACED:
        write(path, 1.0)
    assert killed(where, lambda: write(path, 2.0))
    assert read(path) == 1.0 if name in REPLACED else not path.exists()
    left = [file.name for file in path.parent.glob(".*.part")]
    assert left
    write(path, 3.0)
    assert read(path) == 3.0
    storage.remove_unfinished(path.parent)
    assert not list(path.parent.glob(".*"))
    assert read(path) == 3.0


def two_disks() -> bool:
    return Path("/dev/shm").is_dir() and os.stat("/dev/shm").st_dev != os.stat(tempfile.gettempdir()).st_dev


@pytest.mark.skipif(not two_disks(), reason="needs a second file system that can be written: /dev/shm")
@pytest.mark.parametrize("name", REPLACED)
def test_so_does_one_on_another_file_system_than_temporary_files(tmp_path: Path, monkeypatch, name: str):
    """Between two file systems a file that is moved is copied, and a kill leaves a piece of it."""
    write, read = KINDS[name]
    with tempfile.TemporaryDirectory(dir="/dev/shm") as other:
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        write(path := Path(other) / name, 1.0)
        for where in ("while it writes", "fsync", "replace"):
            assert killed(where, lambda: write(path, 2.0))
            assert read(path) == 1.0
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", KINDS)
def test_nothing_is_written_among_temporary_files(tmp_path: Path, monkeypatch, name: str):
    write, read = KINDS[name]
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    write(tmp_path / name, 1.0)
    assert read(tmp_path / name) == 1.0


def test_texts_and_exports_remove_what_a_killed_save_left_of_them(tmp_path: Path):
    for name in ("00000.safetensors", "exported"):
        write, _ = KINDS[name]
        assert killed("replace", lambda write=write, name=name: write(tmp_path / name, 1.0))  # type: ignore[misc]
    other = tmp_path / ".exported.2.01234567.part"  # of a folder with a longer name
    other.mkdir()
    for name in ("00000.safetensors", "exported"):
        KINDS[name][0](tmp_path / name, 2.0)
    assert list(tmp_path.glob(".*")) == [other]


@pytest.mark.parametrize("name", KINDS)
def test_a_full_disk_is_one_line_with_the_name_and_the_old_file_stays(tmp_path: Path, name: str):
    write, read = KINDS[name]
    path = tmp_path / name
    if name in REPLACED:
        write(path, 1.0)
    with full_disk(), pytest.raises(DraftError, match=f"cannot write .*{name}: .*File too large") as caught:
        write(path, 2.0)
    assert "\n" not in str(caught.value)
    assert [file for file in tmp_path.iterdir() if file != path] == []
    assert read(path) == 1.0 if name in REPLACED else not path.exists()


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("name", KINDS)
def test_an_error_of_the_disk_is_never_passed_over(tmp_path: Path, monkeypatch, name: str, call: str):
    write, read = KINDS[name]
    path = tmp_path / name
    if name in REPLACED:
        write(path, 1.0)

    def fail(*_: Any) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(DraftError, match=rf"cannot write .*{Path(name).stem}\.?"):
        write(path, 2.0)
    monkeypatch.undo()
    assert [file for file in tmp_path.iterdir() if file != path] == []
    assert read(path) == 1.0 if name in REPLACED else not path.exists()


@pytest.mark.parametrize("name", REPLACED)
def test_a_file_that_cannot_be_replaced_is_named(tmp_path: Path, name: str):
    (tmp_path / name / "inside").mkdir(parents=True)
    with pytest.raises(DraftError, match=rf"cannot write .*{Path(name).stem}\.?"):
        KINDS[name][0](tmp_path / name, 2.0)
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_a_new_file_can_be_read_by_those_who_may_read_any_new_file(tmp_path: Path):
    (tmp_path / "plain").touch()
    for name, (write, _) in KINDS.items():
        write(tmp_path / name, 1.0)
    modes = {file.stat().st_mode & 0o777 for file in tmp_path.rglob("*") if file.is_file()}
    assert modes == {(tmp_path / "plain").stat().st_mode & 0o777}


def test_a_run_whose_checkpoint_cannot_be_written_fails_and_keeps_the_last_one(command, tmp_path, monkeypatch, capsys):
    """The disk fills up in the second epoch."""
    save, calls = torch.save, []

    def full(checkpoint: dict[str, Any], file: Any) -> None:
        calls.append(checkpoint["epoch"])
        if checkpoint["epoch"]:
            file.write(b"a piece")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(checkpoint, file)

    monkeypatch.setattr(torch, "save", full)
    words = ("experiment=smoke/sft", "budget.epochs=2", "hydra.run.dir=out", *UNTIMED)
    assert command(*words) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert line.startswith("error: cannot write ")
    assert "last.ckpt: [Errno 28] No space left on device" in line or "best.ckpt: [Errno 28]" in line
    assert calls[-1] == 1
    assert not (tmp_path / "out" / "results.json").exists()
    folder = tmp_path / "out" / "checkpoints"
    assert sorted(file.name for file in folder.iterdir()) == ["best.ckpt", "last.ckpt"]
    assert torch.load(folder / "last.ckpt", weights_only=True)["epoch"] == 0


def test_only_checkpoints_of_this_process_are_removed(tmp_path: Path):
    """A checkpoint that a run is resumed from names the one to remove; `..` would take it anywhere."""
    io, own, other = WholeCheckpoints(), tmp_path / "own.ckpt", tmp_path / "other.ckpt"
    io.save_checkpoint({}, own)
    other.touch()
    for path in (other, tmp_path / "checkpoints" / ".." / "other.ckpt", f"local://{other}", tmp_path):
        io.remove_checkpoint(path)
    assert other.exists()
    io.remove_checkpoint(own)
    assert not own.exists()


class Touch:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def test_lightning_loads_nothing_that_can_run(tmp_path: Path):
    torch.save({"state_dict": Touch(tmp_path / "ran")}, tmp_path / "a.ckpt")
    with pytest.raises(Exception, match="eights"):
        WholeCheckpoints().load_checkpoint(tmp_path / "a.ckpt", weights_only=False)
    assert not (tmp_path / "ran").exists()
