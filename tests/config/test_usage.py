"""What commands answer without running: --help, --version, shell completion."""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage

import pytest

from draftopd.config import usage
from draftopd.config.choices import options
from draftopd.config.places import CONFIG_DIR
from draftopd.config.schema import SCHEMAS

COMMANDS = sorted(SCHEMAS)
LIMIT = 3.0  # seconds of a core; an import of torch alone takes about as long


@pytest.mark.parametrize("command", COMMANDS)
def test_the_page_has_what_the_command_takes(command: str):
    page, schema = usage.page(command), SCHEMAS[command]
    groups, settings = page.split("Groups with")[1].split("Settings with their defaults")
    for group in {*schema.groups, *schema.optional_groups} - {"loggers"}:  # which logger=... fills
        assert f"\n  {group}" in groups or f"@{group}=" in groups
    for name in (*schema.values.__annotations__, *schema.sections):
        assert f"\n  {name}: " in settings or f"\n  {name}:\n" in settings
    assert page.count(f"python -m draftopd.{command} ") >= 2  # the first line, and examples
    if command != "fit":
        assert "traces" not in groups


@pytest.mark.parametrize("command", COMMANDS)
def test_words_of_the_examples_are_there(command: str):
    """Groups have those choices, and everything else is a setting."""
    schema = SCHEMAS[command]
    groups = {*schema.groups, *schema.optional_groups, "experiment"}
    names = {*schema.values.__annotations__, *schema.sections, *groups, "hydra"}
    for example in re.findall(rf"(?m)^  python -m draftopd\.{command} (.*?)(?:   .*)?$", usage.page(command)):
        for key, value in (word.split("=", 1) for word in shlex.split(example) if "=" in word):
            assert key.split(".")[0] in names
            assert key not in groups or {*value.split(",")} <= {*options(key, [CONFIG_DIR])}


def test_default_choices_come_first_and_folders_have_lines_of_their_own(tmp_path: Path):
    page = usage.page("fit")
    assert "\n  target            smollm2_135m, hf," in page
    assert "\n    smoke/...       dflash2," in page
    (tmp_path / "objective").mkdir()
    (tmp_path / "objective" / "my_loss.yaml").touch()
    assert "my_loss" in usage.page("fit", [CONFIG_DIR, tmp_path])


def test_help_takes_no_imports_of_a_run():
    used = getrusage(RUSAGE_CHILDREN)
    code = "import sys; sys.argv[0] = 'draftopd-fit'; from draftopd.config import usage; usage.main()"
    for command in ([sys.executable, "-m", "draftopd.fit"], [sys.executable, "-c", code]):
        done = subprocess.run([*command, "--help"], capture_output=True, text=True)
        assert done.stdout == usage.page("fit"), done.stderr
    after = getrusage(RUSAGE_CHILDREN)
    assert (after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime) / 2 < LIMIT


def test_version_and_completion(monkeypatch, capfd):
    monkeypatch.setattr(sys, "argv", ["draftopd-fit", "--version"])
    with pytest.raises(SystemExit):
        usage.main()
    assert capfd.readouterr().out.startswith("draftopd 0.")
    monkeypatch.setattr(sys, "argv", ["draftopd-fit", "-sc", "query=bash"])
    monkeypatch.setenv("COMP_LINE", "draftopd-fit objective=draft_")
    with pytest.raises(SystemExit):
        usage.main()
    assert capfd.readouterr().out.split() == ["objective=draft_opd"]


def test_other_words_run_the_command(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["draftopd-fit", "experiment=smoke"])
    assert usage.answer("fit") is None
