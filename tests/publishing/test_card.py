"""The model card says what is known, for people and for the hub, and nothing of this machine."""

import json
import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from draftopd import evaluate, export
from draftopd.evaluation.results import load
from hub_server import TOKEN, hub


def test_a_checkpoint_brings_its_results_and_its_recipe(command, tested: Path, capsys):
    assert command(f"run={tested}", "logger=none", "to=out", "target_name=org/t", main=export.main) == 0
    printed = capsys.readouterr().out
    assert "draft vocabulary: vLLM: the 64 tokens, as in training" in printed
    card = ModelCard.load("out/README.md")
    assert (card.data.library_name, card.data.base_model) == ("draftopd", "org/t")
    assert {"speculative-decoding", "dflash"} <= set(card.data.tags or [])
    assert card.data.get("license") is None
    results = load(tested.parents[1] / "results.json")
    scores = results.results[0].scores["tiny"]
    assert f"| tiny | 4 | {scores['acceptance_length'].estimate()} |" in card.text
    for k in range(1, 4):
        assert f"| {k} | {scores[f'accept_at/{k}'].estimate()} |" in card.text
    training = results.results[0].training
    assert training is not None
    assert f"| training | {training.flops / 1e15:.3g} PFLOPs, {training.seconds / 60:.1f} minutes |" in card.text
    assert f"| commit | `{results.header['git_commit']}` |" in card.text
    assert "| objective | `CrossEntropy` |" in card.text
    assert "--model org/t " in card.text
    assert '"model": "out", "num_speculative_tokens": 3' in card.text
    assert not re.search(r"[ \"'`(](/|~/)\w", card.text.replace("~/.cache", ""))


def test_an_evaluation_brings_other_prompts_and_the_speed_model(command, checkpoint: Path, tmp_path: Path, capsys):
    words = (
        f"checkpoint={checkpoint}",
        "logger=none",
        "speed.prompts=1",
        "speed.block_sizes=[4]",
        "decoding.max_new_tokens=8",
        "limit=2",
    )
    assert command(*words, "hydra.run.dir=tested", main=evaluate.main) == 0
    few = (f"run={checkpoint}", "logger=none", "license=mit")
    assert command(*few, "results=tested/results.json", "to=out", main=export.main) == 0
    card = ModelCard.load("out/README.md")
    assert card.data.get("license") == "mit"
    assert "2 prompts, greedy, at most 8 new tokens" in card.text
    sizes = json.loads((tmp_path / "tested" / "results.json").read_text())["results"][0]["block_sizes"]
    for row in sizes:
        assert f"| {row['model']:.2f}x | {row['measured']:.2f}x |" in card.text
    assert "PFLOPs" in card.text  # of the run, which the evaluation does not know

    other = tmp_path / "other.ckpt"
    other.write_bytes(checkpoint.read_bytes())
    words = (f"run={other}", "logger=none", "results=tested/results.json", "to=other")
    assert command(*words, main=export.main) == 2
    assert "has no test of" in capsys.readouterr().err
    assert command(f"run={other}", "logger=none", "to=other", main=export.main) == 0
    assert "Not measured" in Path("other/README.md").read_text()


def test_it_goes_to_the_hub_with_commands_that_load_it_from_there(command, checkpoint: Path, monkeypatch, capsys):
    with hub() as server:
        known = export.HfApi
        monkeypatch.setattr(export, "HfApi", lambda: known(endpoint=server.endpoint, token=TOKEN))
        few = (f"run={checkpoint}", "logger=none", "push_to_hub=me/mine")
        assert command(*few, "to=out", "target_name=org/t", main=export.main) == 0
    assert f"pushed: {server.endpoint}/me/mine" in capsys.readouterr().out
    assert server.files["me/mine"].keys() == {"README.md", "config.json", "model.safetensors"}
    card = server.files["me/mine"]["README.md"].decode()
    assert '"model": "me/mine"' in card
    assert 'published("me/mine", target)' in card


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("push_to_hub=mine", "push_to_hub=mine names no owner"),
        ("results=none.json", "cannot read none.json"),
        ("license=3", "license=3 must be text"),
        ("private=0", "private=0 must be true or false"),
    ],
)
def test_mistakes_end_in_one_line_before_anything_is_written(command, checkpoint, capsys, words, said):
    assert command(f"run={checkpoint}", "logger=none", "to=out", words, main=export.main) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert not Path("out").exists()
