"""Bad input ends in one clear line before anything is loaded or written: the table of tests/bad_input.py."""

import pickle
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from bad_input import BASES, VALUES, WORDS
from draftopd.command import CONFIG_DIR, check_words, one_line_errors
from draftopd.config.check import check


def rows(table: str) -> list[list[str]]:
    return [[part.strip() for part in row.split(" | ")] for row in table.strip().splitlines()]


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory):
    """With one file, and with no other when all rows are through."""
    folder = tmp_path_factory.mktemp("empty")
    (folder / "mine.jsonl").write_text('{"prompt": "a"}\n')
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("CUDA_VISIBLE_DEVICES", "")  # some rows ask for more than a CPU has
        yield
    assert [path.name for path in folder.rglob("*")] == ["mine.jsonl"]


@cache
def composed(name: str) -> bytes:
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return pickle.dumps(compose(name.split()[0], overrides=BASES[name].split()))


def with_value(name: str, word: str) -> DictConfig:
    """As Hydra composes it, in a fraction of the time."""
    config: DictConfig = pickle.loads(composed(name))
    given = OverridesParser.create().parse_override(word)
    OmegaConf.update(config, given.key_or_group, given.value(), merge=False, force_add=given.is_add())
    return config


def test_the_table_is_long():
    assert sum(len(rows(table)) for table in [*VALUES.values(), WORDS]) >= 250


@pytest.mark.parametrize("name", [name for name in BASES if name not in ("fit stages", "check")])
def test_what_the_rows_change_is_good(name: str):
    check(name.split()[0], pickle.loads(composed(name)))


@pytest.mark.parametrize(("name", "word", "said"), [(n, *row) for n, table in VALUES.items() for row in rows(table)])
def test_a_wrong_value_is_one_clear_line(name: str, word: str, said: str, capsys):
    with pytest.raises(SystemExit) as stop, one_line_errors():
        check(name.split()[0], with_value(name, word))
    said_in_one_line(said, stop.value.code, capsys.readouterr().err)


@pytest.mark.parametrize(("words", "said"), rows(WORDS))
def test_a_wrong_word_is_one_clear_line(words: str, said: str, capsys, monkeypatch):
    name, *given = words.split()
    monkeypatch.setattr(sys, "argv", [name, *given])
    with pytest.raises(SystemExit) as stop:
        check_words(name)
    said_in_one_line(said, stop.value.code, capsys.readouterr().err)


def said_in_one_line(said: str, code: object, errors: str) -> None:
    (line,) = errors.splitlines()
    assert line.startswith("error: ")
    assert said in line
    assert code == 2


def test_what_is_nested_too_deep_is_one_clear_line(capsys, monkeypatch):
    deep = "{a:" * 2000 + "1" + "}" * 2000
    monkeypatch.setattr(sys, "argv", ["fit", f"+trainer.max_time={deep}"])
    with pytest.raises(SystemExit) as stop:
        check_words("fit")
    said_in_one_line("too deep", stop.value.code, capsys.readouterr().err)


COMMANDS = [
    "fit seed=-1",
    "fit experiment=smoke/sft module.torch_compile=inductr",
    "fit experiment=smoke module.optimizer.lr=fast",
    "evaluate checkpoint=none.ckpt",
    "export run=none.ckpt layout=zlab",
    "check folder=3",
    "fit -m experiment=smoke/sft seed=0,x",
]


@pytest.mark.slow
@pytest.mark.parametrize("words", COMMANDS)
def test_a_command_refuses_by_itself_and_leaves_nothing(words: str, tmp_path: Path):
    name, *given = words.split()
    command = [sys.executable, "-W", "ignore", "-m", f"draftopd.{name}", *given]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    said_in_one_line("error: ", done.returncode, done.stderr)
    assert not list(tmp_path.iterdir())
