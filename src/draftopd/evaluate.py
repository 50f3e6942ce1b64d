"""The evaluation command: `python -m draftopd.evaluate checkpoint=...[,...] [against=...] [prompts=eval/gsm8k]`."""

from draftopd.config import usage

if __name__ == "__main__":
    usage.answer("evaluate")  # before the imports of a run, which take seconds

from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from draftopd.command import CONFIG_DIR, check_words, one_line_errors, take_list
from draftopd.console import lines, quiet
from draftopd.errors import DraftError
from draftopd.evaluation import report, scores
from draftopd.evaluation.headline import headline
from draftopd.evaluation.run import Evaluation, checkpoints, run
from draftopd.tracking.header import git_commit, write_header
from draftopd.tracking.run import Run
from draftopd.tracking.store import check_store


def evaluate(config: DictConfig) -> Evaluation:
    """Tests what the config names; prints, writes and logs the results.

    Raises:
        DraftError: a checkpoint, the prompts, a setting or MLflow cannot be used.
    """
    if config.logger:
        check_store(config.logger.tracking_uri, config.logger.experiment_name)
    evaluation = run(config)
    files = report.show(evaluation.results, Path(config.output_dir))
    if config.logger:
        _log(evaluation, config, files)
    return evaluation


def _log(evaluation: Evaluation, config: DictConfig, files: list[Path]) -> None:
    try:
        tracked: Run = instantiate(config.logger, _convert_="all").start()
    except DraftError as error:
        raise DraftError(f"{error}; the results are in {config.output_dir}") from error
    tags = {
        "target_fingerprint": evaluation.results.target_fingerprint,
        "prompts_fingerprint": evaluation.prompts_fingerprint,
        "checkpoint": ",".join(checkpoints(config)),
        "against": config.against or "",
    }
    write_header(tracked, OmegaConf.to_container(config, resolve=True), tags)  # type: ignore[arg-type]
    first = evaluation.results.results[1 if config.against else 0]
    tracked.log_metrics(scores.metrics(first.scores) | headline(first, evaluation.results), 0)
    for path in files:
        tracked.log_artifact(path)
    tracked.end("FINISHED")


@hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name="evaluate")
def _evaluate(config: DictConfig) -> None:
    with one_line_errors(), lines():
        quiet()
        git_commit()  # of the code that runs, whatever is edited later
        config.output_dir = HydraConfig.get().runtime.output_dir
        evaluate(config)


def main() -> None:
    with one_line_errors():
        take_list("checkpoint")
    check_words("evaluate")
    _evaluate()


if __name__ == "__main__":
    main()
