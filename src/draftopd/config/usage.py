"""What a command answers without running: --help, --version, shell completion. The imports of a run take seconds."""

import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import hydra
from hydra._internal.utils import get_args_parser
from omegaconf import OmegaConf

from draftopd.config.choices import options, own_folder
from draftopd.config.places import CONFIG_DIR
from draftopd.console import greet

LONG = ("fit", "evaluate")
"""commands that say at once that they start"""
HELP = ("-h", "--help")
COLUMN = 20  # where the choices begin
WIDTH = 118
DRY = """\
  --dry-run                 the plan: texts to write, steps, FLOPs, time, memory, disk; nothing runs
"""
PAGE = """\
{command} [group=choice ...] [setting=value ...] [flags]
{script} ...                                 the same

{head}
Groups with their choices, the default first
{groups}

Settings with their defaults; inside a section as section.name=value. Those of a choice: {folder}/<group>/<choice>.yaml
{settings}

Flags
  --help                    this page
  --version                 the version of draftopd
{dry}  --cfg job                 the whole configuration that the words of the command make; nothing runs
  --multirun, -m            a run for each choice and value between commas
  --config-dir FOLDER       further choices, from a folder of yours with the layout of conf/
  -sc install=bash          shell completion: eval "$({script} -sc install=bash)"; also fish, zsh
"""


def main() -> None:
    """The console scripts: draftopd-fit is `python -m draftopd.fit`, and so on."""
    command = Path(sys.argv[0]).stem.removeprefix("draftopd-")
    answer(command)
    import_module(f"draftopd.{command}").main()


def answer(command: str) -> None:
    """Ends the process after what was asked for; returns where the command is to run."""
    words = sys.argv[1:]
    if {*HELP} & {*words}:
        own = get_args_parser().parse_known_args([word for word in words if word not in HELP])[0].config_dir
        print(page(command, [CONFIG_DIR, *([own_folder(own)] if own else [])]), end="")
    elif "--version" in words:
        print(f"draftopd {version('draftopd')}")
    elif {"-sc", "--shell-completion"} & {*words}:
        hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name=command)(lambda config: None)()
    else:
        if command in LONG:
            greet(command)
        return
    sys.exit()


def page(command: str, folders: Sequence[Path] = (CONFIG_DIR,)) -> str:
    """The page of --help: what the command does, examples, groups with their choices, settings with their defaults.

    Args:
        folders: of configuration files, ours first.
    """
    text = (CONFIG_DIR / f"{command}.yaml").read_text()
    head, settings, *_ = re.split(r"(?m)^defaults:\n(?:  .*\n)*|^hydra:\n", text)
    groups = _groups(command)
    filled = "|".join(re.escape(name) for name in groups)  # by the choice of a group
    settings = re.sub(rf"(?m)^(?:{filled}): null.*\n", "", settings)
    return PAGE.format(
        command=f"python -m draftopd.{command}",
        script=f"draftopd-{command}",
        head=re.sub(r"(?m)^# ?", "", head),
        groups="\n".join(line for name, first in groups.items() for line in _choices(name, first, folders)),
        folder=CONFIG_DIR,
        dry=DRY if command == "fit" else "",
        settings=textwrap.indent(settings.strip("\n"), "  "),
    )


def _groups(command: str) -> dict[str, str]:
    """A command's groups and their defaults."""
    entries = [entry for entry in OmegaConf.load(CONFIG_DIR / f"{command}.yaml").defaults if entry != "_self_"]
    pairs = [(str(name), str(first or "none")) for entry in entries for name, first in entry.items()]
    return {name: first for name, first in pairs if not name.startswith("override ")}


def _choices(name: str, first: str, folders: Sequence[Path]) -> Iterator[str]:
    """Lines of the page: the choices of a group, and those of each of its folders."""
    group, _, place = name.partition("@")
    if place:
        yield f"  {name}=...: {first}, or a choice of {group}"
        return
    rows: dict[str, list[str]] = {"": [first]}
    for choice in options(group, folders):
        folder, slash, stem = choice.rpartition("/")
        row = rows.setdefault(folder + slash, [])
        row += [stem] if stem not in row else []
    for folder, stems in rows.items():
        listed = textwrap.fill(", ".join(stems), WIDTH - COLUMN, break_on_hyphens=False)
        label = f"    {folder}..." if folder else f"  {name}"
        yield f"{label:<{COLUMN}}" + listed.replace("\n", "\n" + " " * COLUMN)
