"""The training command: `python -m draftopd.fit experiment=...`.

A run is one stage, or several of which each may start from another's weights; a table at the end compares them.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import hydra
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig

from draftopd.command import CONFIG_DIR, check_words, one_line_errors
from draftopd.console import quiet
from draftopd.errors import DraftError
from draftopd.evaluation.report import show
from draftopd.evaluation.results import Results
from draftopd.training.run import run_stage
from draftopd.training.run_record import ParentRun


@hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name="fit")
def _fit(config: DictConfig) -> None:
    """Runs the stages of a config, or the config itself as the only one, then reports."""
    with one_line_errors():
        quiet()
        if config.stages and (config.init_from or config.resume):
            raise DraftError(f"{config.name} has several stages: init_from and resume need the experiment of one stage")
        folder = Path(HydraConfig.get().runtime.output_dir)
        parent = ParentRun(config) if config.stages else None
        status, done = "FAILED", list[Results]()
        try:
            for stage in _stages(config, folder, parent):
                start = next((r for results in done for r in results.results if r.name == stage.init_from), None)
                if start is not None:
                    stage.init_from = start.checkpoint
                done.append(run_stage(stage, start.name if start else None, parent))
            files = _report(done, folder)
            if parent is not None:
                parent.add(files)
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            if parent is not None:
                parent.close(status)


def _stages(config: DictConfig, folder: Path, parent: ParentRun | None) -> list[DictConfig]:
    """One config per stage: its own experiment, then what the user gave on the command line."""
    if parent is None:
        config.output_dir = str(folder)
        return [config]
    given = [word for word in HydraConfig.get().overrides.task if not word.startswith("experiment=")]
    configs = []
    for name, stage in config.stages.items():
        composed = compose("fit", overrides=[f"experiment={stage.experiment}", *given])
        composed.name, composed.output_dir, composed.init_from = name, str(folder / name), stage.init_from
        if composed.logger:
            composed.logger.tags = {"mlflow.parentRunId": parent.run_id}
        configs.append(composed)
    return configs


def _report(stages: Sequence[Results], folder: Path) -> list[Path]:
    """Shows the stages side by side; returns the files written, none in other processes than the first."""
    if rank_zero_only.rank:  # type: ignore[attr-defined]
        return []
    return show(replace(stages[0], results=[r for stage in stages for r in stage.results]), folder)


def main() -> None:
    check_words("fit")
    _fit()


if __name__ == "__main__":
    main()
