"""`make gpu-check` without a GPU, and the bundle for machines without a network."""

import json
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import distributions, requires
from pathlib import Path

import pytest
from benchmarks.gpu_check import Part
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from benchmarks import gpu_bundle, gpu_check
from draftopd import __version__

ROOT = Path(__file__).parents[2]


def test_limits_are_six_minutes_together():
    assert sum(gpu_check.SECONDS.values()) <= 355


def test_a_part_that_fails_or_hangs_leaves_the_others_alone(tmp_path: Path, capsys):
    python = [sys.executable, "-S", "-c"]
    writes = "import sys; open(sys.argv[1], 'w').write('{\"tokens\": 3}')"
    parts = {
        "fails": Part([*python, f"{writes}; sys.exit('no kernel')"], 30),
        "hangs": Part([*python, "import time; time.sleep(600)"], 0.3),
        "passes": Part([*python, writes], 30),
    }
    results = gpu_check.check(parts, tmp_path)
    outcomes = {name: result["outcome"] for name, result in results.items()}
    assert outcomes == {"fails": "failed", "hangs": "out of time", "passes": "passed"}
    files = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in parts}
    assert {name: file["outcome"] for name, file in files.items()} == outcomes
    assert [file["found"] for file in files.values()] == [{"tokens": 3}, None, {"tokens": 3}]
    assert files["hangs"]["limit_seconds"] == 0.3
    shown = capsys.readouterr()
    assert "no kernel" in shown.err
    assert "passes     passed" in shown.out


@pytest.mark.slow
def test_the_rehearsal_runs_every_part_without_a_network(tmp_path: Path):
    """With limits six times as long: the machine of the tests may be busy."""
    rehearse = [sys.executable, "-m", "benchmarks.gpu_parts", "--rehearse"]
    given = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT / "src"), given]))
    try:
        parts = {name: Part([*rehearse, name], 6 * seconds) for name, seconds in gpu_check.SECONDS.items()}
        results = gpu_check.check(parts, tmp_path)
    finally:
        os.environ["PYTHONPATH"] = given
    logs = {name: (tmp_path / f"{name}.log").read_text()[-2000:] for name in parts}
    assert {name: result["outcome"] for name, result in results.items()} == dict.fromkeys(parts, "passed"), logs
    found = {name: json.loads((tmp_path / f"{name}.json").read_text())["found"] for name in parts}
    assert {test["outcome"] for test in found["tests"]["tests"].values()} == {"passed"}
    assert {"plain", "batch1", "batch8", "batch64", "transformers"} <= found["decoding"]["systems"].keys()
    assert found["redraft"]["systems"]["redraft"]["texts_per_second"] > 0
    steps = found["training"]["systems"]
    assert {"sft", "opd", "sft_forward_kl"} <= steps.keys()
    assert all(step["samples_per_second"] > 0 < step["peak_bytes"] for step in steps.values())
    assert found["training"]["over_cross_entropy"]["sft_forward_kl"] > 0


def test_a_bundle_has_what_the_package_needs_and_its_machine_lacks():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    there = set(gpu_bundle.THERE)
    there |= {Requirement(line).name for name in there for line in requires(name) or () if "extra" not in line}
    covered = {canonicalize_name(name) for name in (*there, *gpu_bundle.REQUIREMENTS, *gpu_bundle.LEFT_OUT)}
    needed = {canonicalize_name(Requirement(line).name) for line in project["dependencies"]}
    assert not needed - covered


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="a bundle takes the last commit")
def test_the_tree_of_a_bundle_knows_its_version_without_being_installed(tmp_path: Path):
    gpu_bundle.tree(tmp_path / "tree")
    (there,) = distributions(name="draftopd", path=[str(tmp_path / "tree" / "src")])
    assert there.version == __version__
    assert (tmp_path / "tree" / "benchmarks" / "gpu_check.py").exists()


def test_a_bundle_comes_in_small_parts_that_are_checked_and_put_together(tmp_path: Path):
    stand_in = tmp_path / "target"
    stand_in.mkdir()
    (stand_in / "model.safetensors").write_bytes(os.urandom(10_000))
    (stand_in / "complete.json").write_text("{}")
    folder, home = tmp_path / "bundle", tmp_path / "home"
    files = gpu_bundle.pack({"target": stand_in, "drafter.ckpt": stand_in / "complete.json"}, folder, 3000)
    assert len(files) > 3
    assert max(file.stat().st_size for file in files) <= 3000

    def unpack() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-S", str(folder / "gpu_unpack.py"), str(tmp_path / "there")]
        return subprocess.run(command, capture_output=True, text=True, check=False, env={"HOME": str(home)})

    done = unpack()
    assert done.returncode == 0, done.stderr
    assert re.search(r"gpu_check --checkpoint ../drafter.ckpt$", done.stdout.strip())
    kept = home / ".cache/draftopd" / gpu_bundle.NAME / "model.safetensors"
    assert kept.read_bytes() == (stand_in / "model.safetensors").read_bytes()

    files[1].write_bytes(b"spoilt" + files[1].read_bytes()[6:])
    done = unpack()
    assert done.returncode == 1
    assert f"not as they were made: {files[1].name}" in done.stderr
