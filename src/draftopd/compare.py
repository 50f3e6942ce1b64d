"""The comparison command: `python -m draftopd.compare RUN_ID outputs/2026-11-28/12-00-00 results.json [to=folder]`."""

from draftopd.config import usage

if __name__ == "__main__":
    usage.answer("compare")  # before the imports of a run, which take seconds

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from draftopd.command import CONFIG_DIR, check_words, one_line_errors
from draftopd.comparison.report import show
from draftopd.comparison.runs import reference_run
from draftopd.comparison.sources import find
from draftopd.console import quiet


def compare(config: DictConfig) -> list[Path]:
    """Shows what the config names side by side; gives back the files that it has written.

    Raises:
        DraftError: a run cannot be found, or a file not be written.
    """
    runs = find(config.runs, config.logger.tracking_uri if config.logger else None)
    return show(runs, reference_run(runs, config.against), Path(config.to).expanduser() if config.to else None)


@hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name="compare")
def _compare(config: DictConfig) -> None:
    with one_line_errors():
        quiet()
        compare(config)


def _settings(words: list[str]) -> list[str]:
    """Runs are named without a key: they become the setting `runs`."""
    runs = [word for word in words if not word.startswith("-") and "=" not in word]
    quoted = ", ".join("'" + run.replace("'", r"\'") + "'" for run in runs)
    return [word for word in words if word not in runs] + ([f"runs=[{quoted}]"] if runs else [])


def main() -> None:
    sys.argv[1:] = _settings(sys.argv[1:])
    check_words("compare")
    _compare()


if __name__ == "__main__":
    main()
