"""The short form of tests/soak.py: nothing grows while a run goes on, nor from run to run."""

from dataclasses import replace

import pytest

import soak


def test_nothing_grows_over_the_steps_of_a_run(command, tmp_path, monkeypatch):
    words = ("experiment=smoke/draft_opd", "data.batching.batch_size=2")  # 64 rollouts
    samples = soak.steps(tmp_path / "out", words, 32, monkeypatch.setattr, number=8)
    assert len(samples) == 8
    grown = soak.growth(samples)
    assert max(grown[what] for what in ("tensors", "files", "threads")) <= soak.MOST, samples
    assert grown["megabytes"] <= 5 * soak.MOST, samples  # few samples, soon after the start


@pytest.mark.slow
def test_nothing_of_a_run_is_left_after_it(command, tmp_path):
    samples = soak.stages(tmp_path, 4)
    assert len({(s.tensors, s.files, s.threads) for s in samples[1:]}) == 1, samples
    assert soak.growth(samples)["megabytes"] <= 5 * soak.MOST, samples


def test_growth_is_told_from_noise():
    even = [soak.Sample(at, 600 + at % 2, 500, 8, 5) for at in range(20)]
    assert max(soak.growth(even).values()) < 0.002
    assert soak.growth([replace(s, megabytes=600 + 3 * s.seconds) for s in even])["megabytes"] > soak.MOST
    assert soak.growth([replace(s, tensors=500 + at) for at, s in enumerate(even)])["tensors"] > 0.01
    warm = [replace(s, megabytes=600 + min(s.seconds, 8) * 20) for s in even]
    assert soak.growth(warm)["megabytes"] == pytest.approx(0, abs=1e-9)
