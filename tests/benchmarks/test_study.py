"""The study's small files: what they keep is enough for the tables, and a table that differs is found."""

import json
import re
from pathlib import Path

import pytest

from benchmarks import study, study_tables
from draftopd import evaluate
from draftopd.evaluation.results import load
from runs import UNTIMED

DOC = """# Results
Prose stays.
<!-- study arms tiny sft draft_opd -->
<!-- end -->
<!-- study curve tiny draft_opd -->
<!-- end -->
<!-- study positions tiny sft -->
<!-- end -->
"""


@pytest.fixture
def joined(command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a study of two arms; its small file, and a document with marks for its tables."""
    words = ("+stages.sft.grid={seed: [0, 1]}", "stages.draft_opd.init_from=sft-seed1", "hydra.run.dir=runs")
    assert command("experiment=smoke", "budget.epochs=3", *UNTIMED, *words) == 0
    monkeypatch.setattr(study_tables, "FOLDER", tmp_path / "small")
    monkeypatch.setattr(study, "DOCUMENT", tmp_path / "results.md")
    (tmp_path / "results.md").write_text(DOC)
    later = "checkpoint=runs/sft-seed0/checkpoints/last.ckpt,runs/sft-seed1/checkpoints/last.ckpt"
    timed = (later, "logger=none", "limit=2", "speed.prompts=2", "speed.block_sizes=[]", "hydra.run.dir=timed")
    assert command(*timed, main=evaluate.main) == 0
    (tmp_path / "later").mkdir()
    (tmp_path / "runs" / "draft_opd").rename(tmp_path / "later" / "draft_opd")
    words = ("--to", str(tmp_path / "small" / "tiny.json"))
    study.main(["join", "runs", *words])
    study.main(["join", "later", *words, "--add", "--timed", "timed/results.json"])
    return tmp_path


def drafters_are_tested_at_a_temperature_along_sampled_texts(joined: Path):
    study.main(["test", "runs", "--temperature", "0.9", "--cache-dir", "cache", "--only", "sft-seed0"])
    file = joined / "runs" / "sft-seed0" / "results-T0.9" / "results.json"
    found = load(file)
    assert (found.decoding.temperature, found.decoding.rule) == (0.9, "token_matching")
    assert len(found.results[0].answers) == 4
    assert not (joined / "runs" / "sft-seed1" / "results-T0.9").exists()


def tiny_of_two_prompts(joined: Path) -> Path:
    saved = json.loads((joined / "small" / "tiny.json").read_text())
    path = joined / "other.json"
    path.write_text(json.dumps({**saved, "sets": saved["sets"][:2]}))
    return path


@pytest.mark.slow
def test_small_files_make_the_tables_and_a_changed_number_is_found(joined: Path, capsys: pytest.CaptureFixture[str]):
    part = study_tables.Part.read("tiny")
    for arm, stages in (("draft_opd", ["draft_opd"]), ("sft", ["sft-seed0", "sft-seed1"])):
        tested = [load(next(joined.glob(f"*/{stage}/results.json"))).results[0] for stage in stages]
        lengths = [result.scores["mean"]["acceptance_length"].value for result in tested]
        assert part.length(arm).value == pytest.approx(sum(lengths) / len(lengths))

    others = tiny_of_two_prompts(joined)
    with pytest.raises(SystemExit):
        study.main(["join", "later", "--to", str(others), "--add"])
    assert "has other sets" in capsys.readouterr().err

    study.main(["check", "--write"])
    written = (joined / "results.md").read_text()
    assert "Prose stays." in written
    assert "| `sft` | 2 |" in written
    assert re.search(r"\| `sft` \|( \d\.\d\d \|){3} \d+\.\d\d \[", written)  # K shares, and a speedup
    assert "| `draft_opd` | 1 |" in written
    assert "per 10 % of the compute" in written
    study.main(["check"])
    assert "3 tables of results.md recomputed: no number differs" in capsys.readouterr().out

    (joined / "results.md").write_text(written.replace("| `sft` | 2 |", "| `sft` | 3 |"))
    with pytest.raises(SystemExit) as stop:
        study.main(["check"])
    assert stop.value.code == 2
    assert "differs from benchmarks/results/study" in capsys.readouterr().err
    drafters_are_tested_at_a_temperature_along_sampled_texts(joined)


def test_gains_are_in_percent_of_more_sft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(study_tables, "FOLDER", tmp_path)
    committed = {"sft-seed0": 20, "sft-seed1": 20, "new-seed0": 25, "new-seed1": 25, "own-seed0": 24}
    runs = {name: {"committed": [count] * 3, "blocks": [10] * 3} for name, count in committed.items()}
    (tmp_path / "tiny.json").write_text(json.dumps({"sets": ["a", "a", "a"], "runs": runs}))
    *_, row = study_tables.gains("DFlash/96_×_2/mix=tiny:sft:new:own:-")
    gains = "+25.0 % [+25.0, +25.0] | +20.0 % [+20.0, +20.0] | -4.0 % [-4.0, -4.0] | - |"
    assert row == f"| DFlash | 96 × 2 | mix | 1–2 | 2.00 | {gains}"


def test_the_border_map_is_a_table_and_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(study_tables, "FOLDER", tmp_path)
    committed = {"warm": [20, 30, 40, 20], "sft": [22, 33, 40, 25], "new": [24, 36, 44, 26]}
    runs = {f"{kind}_8_1": {"committed": counts, "blocks": [10] * 4} for kind, counts in committed.items()}
    (tmp_path / "map.json").write_text(json.dumps({"sets": ["a", "a", "b", "b"], "runs": runs}))
    (row,) = [line for line in study_tables.border("map") if line.startswith("| 8 | 1 |")]
    assert row.startswith("| 8 | 1 | 2.75 | 3.00 | 3.25 | +0.25 [")
    study.main(["picture", "map", "--to", str(tmp_path / "map.png")])
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")
