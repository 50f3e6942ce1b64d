"""The commands export and check, and training from a published folder; each in an empty folder."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mlflow import MlflowClient

from draftopd import check, export
from draftopd.checkpoints.native import restore
from draftopd.checkpoints.published import published, read, write
from draftopd.drafters.eagle3 import Eagle3
from draftopd.target import load
from pair import SIZES
from published_folders import changed, put, together

SHORT = ("budget.epochs=null", "budget.steps=2", "test.speedup_prompts=0", "callbacks.speedup.prompts=0")
SMOKE = ("experiment=smoke/sft", *SHORT)


def last(folder: Path) -> Path:
    return max(folder.rglob("last.ckpt"), key=lambda p: p.stat().st_mtime)


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return torch.load(checkpoint, weights_only=True)["state_dict"]


@pytest.mark.parametrize(("kind", "layout"), [("", "zlab"), pytest.param("eagle3_", "safeai", marks=pytest.mark.slow)])
def test_a_checkpoint_becomes_a_folder_and_training_goes_on_from_it(command, tmp_path, capsys, kind, layout):
    smoke = f"experiment=smoke/{kind}sft"
    assert command(smoke, *SHORT, "logger=none") == 0
    checkpoint = last(tmp_path)
    assert command(f"run={checkpoint}", f"layout={layout}", "to=out", "target_name=org/t", main=export.main) == 0
    assert "written: out" in capsys.readouterr().out
    restored = restore(checkpoint)
    drafter = published("out", restored.target)
    trained = weights(checkpoint)
    assert all(torch.equal(value, trained[f"drafter.{name}"]) for name, value in drafter.state_dict().items())

    group = ("drafter=published",) if kind else ()  # or any other, DFlash's here
    assert command(smoke, *group, "drafter.path=out", *SHORT, "logger=none", "seed=1") == 0
    further = torch.load(last(tmp_path), weights_only=True)
    assert further["global_step"] == 2
    assert further["config"]["drafter"]["_target_"].endswith("Eagle3" if kind else "DFlash")
    assert "path" not in further["config"]["drafter"]
    difference = (further["state_dict"]["drafter.fc.weight"] - trained["drafter.fc.weight"]).abs().max()
    assert 0 < difference < 0.02  # two steps from there, not from new weights
    (tmp_path / "out").rename(tmp_path / "moved")
    assert torch.equal(restore(last(tmp_path)).drafter.d2t, drafter.d2t)  # the run needs the folder no more


@pytest.mark.slow
def test_eagles_own_files_start_training_without_layer_ids_and_depth(command, tmp_path):
    """The target tells the layers: 1, L / 2 - 1 and L - 4. The folder's kind wins over that of the experiment."""
    target = load.tiny({"model_type": "llama", **SIZES, "num_hidden_layers": 12})
    torch.manual_seed(1)
    drafter = Eagle3(target.shape, block_size=4)
    drafter.initialise(target.head)
    write(drafter, tmp_path / "full", "safeai", target)
    aux = "eagle_aux_hidden_state_layer_ids"
    gone = (aux, "eagle_config", "num_target_layers", "trained_to_read", "target_fingerprint", "block_size")
    own = changed(tmp_path / "full", tmp_path, together(*(put(key) for key in gone)))
    words = (f"drafter.path={own}", "target.architecture.num_hidden_layers=12", "logger=none")
    assert command(*SMOKE, *words) == 0
    config = torch.load(last(tmp_path), weights_only=True)["config"]["drafter"]
    assert (config["_target_"], config["layer_ids"]) == ("draftopd.drafters.eagle3.Eagle3", [1, 5, 8])


@pytest.mark.slow
def test_a_run_id_says_where_to_and_gets_an_artifact(command, capsys, checkpoint, monkeypatch):
    """The store is another test's, a slow one."""
    run, logged = "0123456789abcdef" * 2, []
    monkeypatch.setattr(export, "find_checkpoint", lambda *_: checkpoint)
    client = SimpleNamespace(log_artifacts=lambda *words: logged.append(words))
    monkeypatch.setattr(export, "open_store", lambda _uri: client)
    assert command(f"run={run}", "layout=speculators", main=export.main) == 0
    assert logged == [(run, "exports/speculators-01234567", "export/speculators")]
    assert f"artifact: export/speculators of MLflow run {run}" in capsys.readouterr().out
    assert command(f"run={run}", "layout=speculators", main=export.main) == 2
    assert "exports/speculators-01234567 is not empty, and nothing is overwritten" in capsys.readouterr().err
    assert len(logged) == 1
    assert command(f"run={checkpoint}", "layout=speculators", "to=out", main=export.main) == 0
    assert len(logged) == 1  # a file is of no run


def test_a_checkpoint_or_folder_gives_the_new_folder_its_name(command, capsys, checkpoint):
    assert command(f"run={checkpoint}", "layout=zlab", "logger=none", main=export.main) == 0
    assert "written: exports/zlab-fit" in capsys.readouterr().out
    words = ("run=exports/zlab-fit", "layout=speculators", "target=tiny", "logger=none")
    assert command(*words, main=export.main) == 0
    assert "written: exports/speculators-zlab-fit" in capsys.readouterr().out


@pytest.mark.slow
def test_an_mlflow_run_gets_the_folder_as_an_artifact(command, tmp_path, capsys):
    assert command(*SMOKE) == 0
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("draftopd")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert command(f"run={run.info.run_id}", "layout=zlab", main=export.main) == 0
    listed = {a.path for a in client.list_artifacts(run.info.run_id, "export/zlab")}
    assert listed == {f"export/zlab/{name}" for name in ("README.md", "config.json", "model.safetensors")}
    config = json.loads((tmp_path / f"exports/zlab-{run.info.run_id[:8]}" / "config.json").read_text())
    assert config["target_fingerprint"] == run.data.tags["target_fingerprint"]
    assert "draft_vocab_size 64 in z-lab's layout" in capsys.readouterr().out


@pytest.mark.slow
def test_a_folder_is_converted_and_checked_for_its_target(command, tmp_path, capsys):
    assert command(*SMOKE, "logger=none") == 0
    assert command(f"run={last(tmp_path)}", "layout=zlab", "to=a", main=export.main) == 0
    assert command(f"run={last(tmp_path)}", "layout=safeai", "to=b", main=export.main) == 2
    assert "no layout 'safeai' for DFlash drafters: choose zlab or speculators" in capsys.readouterr().err
    assert command("run=a", "layout=speculators", "to=b", main=export.main) == 2
    assert "name its target too" in capsys.readouterr().err
    words = ("run=a", "layout=speculators", "to=b", "target=tiny", "target_name=org/t")
    assert command(*words, main=export.main) == 0
    one, two = read("a").drafter.state_dict(), read("b").drafter.state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    capsys.readouterr()
    assert command("folder=b", "target=tiny", main=check.main) == 0
    assert capsys.readouterr().out.strip() == "b: no errors, 0 warnings"
    assert command("folder=b", "target=tiny", "target.seed=1", main=check.main) == 2
    printed = capsys.readouterr()
    assert "error: target fingerprint" in printed.out
    assert printed.err.strip() == "error: b: 1 of 1 findings are errors"


BAD = {
    "no such run": (export.main, ["run=none.ckpt", "layout=zlab", "to=out"], "none.ckpt"),
    "no run": (export.main, ["layout=zlab", "to=out"], "run must be given"),
    "not a checkpoint": (export.main, ["run=text.ckpt", "layout=zlab", "to=out"], "not a checkpoint"),
    "check nothing": (check.main, ["folder=./nowhere"], "no drafter at './nowhere'"),
    "check what": (check.main, [], "folder must be given"),
    "train from nothing": (None, ["experiment=smoke/sft", "drafter=published", "drafter.path=./nowhere"], "./nowhere"),
    "train from what": (None, ["experiment=smoke/sft", "drafter=published"], "drafter.path must be given"),
    "train from an empty folder": (None, ["experiment=smoke/sft", "init_from=empty"], "no config.json"),
    "resume a folder": (None, ["experiment=smoke/sft", "resume=empty"], "without optimizer and step"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_line(command, tmp_path, capsys, case):
    (tmp_path / "text.ckpt").write_text("text")
    (tmp_path / "empty").mkdir()
    main, words, expected = BAD[case]
    options = {} if main is None else {"main": main}
    assert command(*words, *(["logger=none"] if main is not check.main else []), **options) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert len(errors) == 1, errors
    assert errors[0].startswith("error: ")
    assert expected in errors[0]
    assert not (tmp_path / "out").exists()
