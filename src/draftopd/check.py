"""The check command: `python -m draftopd.check folder=...`; `target=...` compares the drafter with its target."""

from draftopd.config import usage

if __name__ == "__main__":
    usage.answer("check")  # before the imports of a run, which take seconds

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig

from draftopd.checkpoints.published import check_folder
from draftopd.command import CONFIG_DIR, check_words, one_line_errors
from draftopd.console import quiet
from draftopd.errors import DraftError


def report(config: DictConfig) -> None:
    """Prints every finding; raises DraftError where one of them is an error."""
    findings = check_folder(config.folder, instantiate(config.target) if config.target else None)
    for finding in findings:
        print(f"{finding.severity}: {finding.what}\n  goes wrong: {finding.effect}\n  fix: {finding.fix}")
    errors = len(findings.errors)
    if errors:
        raise DraftError(f"{config.folder}: {errors} of {len(findings)} findings are errors")
    print(f"{config.folder}: no errors, {len(findings)} warnings")


@hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name="check")
def _check(config: DictConfig) -> None:
    with one_line_errors():
        quiet()
        report(config)


def main() -> None:
    check_words("check")
    _check()


if __name__ == "__main__":
    main()
