"""What documents name is there: files, anchors, tests, commands, choices, names in code."""

import ast
import re
import shlex
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest

TESTS = Path(__file__).parent
ROOT = TESTS.parent
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted(ROOT.glob("docs/**/*.md")),
]
NOT_RUN = {  # how a command begins -> why no test runs or parses it
    "pip install": "fetches packages; the extras and files that it names are looked up",
    "python -m venv": "makes an environment",
    "python3 -m venv": "the same",
    ".venv-peers/bin/pip": "fetches packages of others",
    "vllm serve": "vLLM is not installed; tests/publishing/test_engines.py holds the words equal to what we make",
    "python -m vllm.entrypoints.openai.api_server": "the same",
    "python -m sglang.launch_server": "SGLang asks for a GPU; held by the same test",
    "eval": "completion of the shell, in tests/config/test_usage.py",
    "bash .ci/run": "runs all tests itself",
    "python -m pytest": "would run tests in a test",
    "python -c": "one line of Python, which is compiled as the blocks are",
    "for": "a loop of the shell; the command inside is checked by itself",
    "done": "its end",
    "diff": "compares what the loop has written",
    "echo": "says so",
}
PROGRAMS = ("fit", "evaluate", "compare", "chat", "export", "check", "ui")
OURS = re.compile(rf"(?:.* )?(?:python -m draftopd\.|-m draftopd\.|draftopd-)({'|'.join(PROGRAMS)})(?: (.*))?$")
A_RUN = "0123456789abcdef0123456789abcdef"
STANDS_FOR = {  # in a command -> what is checked in its place
    **dict.fromkeys(("RUN_ID", "OTHER", "CHECKPOINT"), A_RUN),
    "A,B,C": ",".join([A_RUN] * 3),
    "/shared/": "shared/",
    "$SLURM_JOB_ID": "1",
    "$e": "smoke",
}


class Command(NamedTuple):
    page: str
    text: str
    """without comments and line breaks, variables filled in"""

    @property
    def ours(self) -> tuple[str, list[str]] | None:
        """Program and words, where it starts one of our commands."""
        found = OURS.match(self.text)
        return (found[1], shlex.split(found[2] or "")) if found else None


@cache
def commands() -> list[Command]:
    """Of every block of shell in every page."""
    return [Command(page.name, text) for page in PAGES for block in fenced(page, "bash") for text in lines(block)]


def fenced(page: Path, language: str) -> list[str]:
    return re.findall(rf"^ *```{language}\n(.*?)^ *```$", page.read_text(), re.MULTILINE | re.DOTALL)


def lines(block: str) -> Iterator[str]:
    given: dict[str, str] = {}
    for line in block.replace("\\\n", " ").splitlines():
        if found := re.match(r"(\w+)=\"(.*)\"", line):
            given[found[1]] = found[2]
            continue
        text = " ".join(shlex.split(line, comments=True, posix=False))
        for name, value in given.items():
            text = text.replace(f"${name}", value)
        yield from (part for part in text.split(" && ") if part)


def outside_code(page: Path) -> str:
    return re.sub(r"^ *```.*?^ *```$|`[^`\n]*`", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


@cache
def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings, and mkdocs.yml with it."""
    text = re.sub(r"^ *```.*?^ *```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ +(.*?) *$", text, re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", h)).strip().lower().replace(" ", "-")
        for h in headings
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_to_a_file_and_an_anchor(page: Path):
    for to in re.findall(r"\]\(([^)\s]+)\)", outside_code(page)):
        if re.match(r"https?://", to):
            continue
        file, _, anchor = to.partition("#")
        place = (page.parent / file).resolve() if file else page
        assert place.exists(), f"{page.name}: {to}"
        assert place.is_relative_to(ROOT)
        assert not anchor or anchor in anchors(place), f"{page.name}: {to}"


def test_every_command_is_one_that_is_checked_or_on_the_list():
    assert len(commands()) > 60
    used = set()
    for page, text in commands():
        known = [start for start in NOT_RUN if f"{text} ".startswith(f"{start} ")]
        used.update(known)
        script = re.match(r"make |\. |\S*python (-m benchmarks\.|benchmarks/|tests/|\.ci/)", text)
        assert known or script or OURS.match(text), f"{page}: {text}"
    assert used == NOT_RUN.keys()


def test_every_make_target_and_its_variables_are_there():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    for page in PAGES[:2] + PAGES[3:]:  # the changelog tells of earlier ones too
        assert set(re.findall(r"(?:^|`)make ([a-z-]+)", page.read_text(), re.MULTILINE)) <= targets, page.name
    for page, text in commands():
        if text.startswith("make "):
            names = {word.split("=")[0] for word in shlex.split(text)[1:] if "=" in word}
            assert all(f"$({name})" in makefile for name in names), f"{page}: {text}"


def test_every_script_is_there_and_has_the_flags():
    for page, text in commands():
        words = shlex.split(text)
        found = re.match(r"\S*python (?:-m (benchmarks\.\w+)|((?:benchmarks|tests|\.ci)/\S+))", text)
        if found:
            source = (ROOT / (found[2] or found[1].replace(".", "/") + ".py")).read_text()
            flags = [word.split("=")[0] for word in words[1:] if word.startswith("--")]
            assert all(f'"{flag}"' in source for flag in flags), f"{page}: {text}"


def test_every_file_and_extra_that_pip_is_given_is_there():
    project = (ROOT / "pyproject.toml").read_text()
    for page, text in commands():
        if text.startswith("pip install"):
            assert all((ROOT / name).exists() for name in re.findall(r"-[cr] (\S+)", text)), f"{page}: {text}"
            assert all(f"\n{name} = [" in project for name in re.findall(r"\.\[(\w+)\]", text)), f"{page}: {text}"


def test_every_choice_of_a_group_is_there():
    for page, text in commands():
        for group, choices in re.findall(r"(?<=\s)([\w/]+)(?:@\w+)?=(\S+)", text):
            if (ROOT / "conf" / group).is_dir() and choices not in ("$e", "my_run"):
                for choice in choices.split(","):
                    assert (ROOT / "conf" / group / f"{choice}.yaml").exists(), f"{page}: {text}"
    table = (ROOT / "docs/guides/experiments.md").read_text().partition("| group | choices |")[2]
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", table, re.MULTILINE))
    assert {"target", "prompts", "drafter", "objective", "experiment"} <= rows.keys()
    for group, row in rows.items():
        there = {
            str(p.relative_to(ROOT / "conf" / group).with_suffix("")) for p in (ROOT / "conf" / group).rglob("*.yaml")
        }
        named = set(re.findall(r"`([a-z0-9_/]+)`", row))
        assert named <= there | {"sft", "on_policy", "mixed"}, group
        if group == "objective":
            assert named == there


def test_python_in_the_pages_compiles_and_finds_our_names():
    blocks = [block for page in PAGES for block in fenced(page, "python")]
    blocks += [shlex.split(text)[2] for _, text in commands() if text.startswith("python -c")]
    assert len(blocks) >= 4
    for block in blocks:
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("draftopd"):
                assert all(hasattr(import_module(str(node.module)), name.name) for name in node.names), block
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "draftopd":
                assert hasattr(import_module("draftopd"), node.attr), node.attr


OUR_COMMANDS = sorted(
    {(name, *words) for command in commands() for name, words in [command.ours or ("ui", [])] if name != "ui"}
)


@pytest.mark.slow
@pytest.mark.parametrize("command", OUR_COMMANDS, ids=" ".join)
def test_our_commands_compose_and_pass_the_check_of_their_configuration(command, tmp_path, monkeypatch, capsys):
    """By the command's own main, which ends where it would start to run."""
    name, *words = command
    module = import_module(f"draftopd.{name}")
    (tmp_path / "mine/experiment").mkdir(parents=True)
    (tmp_path / "mine/experiment/my_run.yaml").write_text("# @package _global_\ndefaults: [dflash_sft]\n")
    for folder in ("my-drafter", "Qwen3-8B-DFlash-b16"):
        (tmp_path / folder).mkdir()
    for file in ("mine.jsonl", "questions.jsonl"):
        (tmp_path / file).write_text('{"prompt": "a"}\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [f"draftopd-{name}", *filter(None, map(stand_in, words)), *for_this_machine(words)])
    for run in (f"_{name}", "_dry_run"):
        monkeypatch.setattr(module, run, lambda: None, raising=False)
    monkeypatch.setattr("hydra.main", lambda **_: lambda _: lambda: None)  # `chat` makes its own when it starts
    try:
        module.main()
    except SystemExit:
        pytest.fail(capsys.readouterr().err)


def stand_in(word: str) -> str:
    for name, value in STANDS_FOR.items():
        word = re.sub(rf"(?<![A-Z_]){re.escape(name)}(?![A-Z_])", value, word)
    sweeps = find_spec("hydra_plugins") and find_spec("hydra_plugins.hydra_joblib_launcher")  # the extra
    return "" if re.match(r"hydra[/.]launcher", word) and not sweeps else word


def for_this_machine(words: list[str]) -> list[str]:
    """The experiments for GPUs ask for one."""
    return ["module.attention=sdpa"] if any(word.startswith("experiment=qwen3") for word in words) else []


def test_every_fault_of_the_table_has_its_test():
    page = (TESTS.parent / "docs" / "faults.md").read_text()
    named = re.findall(r"`([\w/.]*)::(\w+)`", page)
    rows = [row for row in page.splitlines() if row.startswith("| ") and not row.startswith("| fault")]
    assert len(named) >= len(rows) > 30
    file = ""
    for place, test in named:
        file = place or file  # `::test` is in the file named before
        assert f"def {test}(" in (TESTS / file).read_text(), f"{file} has no {test}"
