"""Ablations: valid settings, outcomes of runs, and what counts as a failure."""

import functools
import json
import subprocess
import sys
import time

import pytest

from functa.configs import cifar10_spatial
from functa.training.tasks import builders
from tests.conftest import ROOT
from tools.experiments import ablations
from tools.experiments.ablations import Outcome, Trial

ROWS = ablations.ablation([], steps=800, data_dir="data")


@pytest.mark.parametrize("trial", ROWS, ids=lambda trial: trial.name)
def test_every_row_is_a_valid_config(trial):
    config = cifar10_spatial.get_config(trial.config.partition(":")[2])
    values = config.to_dict()
    for key, value in trial.changes.items():
        assert type(functools.reduce(dict.__getitem__, key.split("."), values)) is type(value), key
    config.update_from_flattened_dict(trial.changes)
    assert builders.validate_meta_learning(config) == []


def test_rows_and_sweeps():
    names = [trial.name for trial in ablations.ablation(["width"], steps=8, data_dir="d")]
    assert names == ["base", "width-32", "width-128"]
    with pytest.raises(ValueError, match="breadth"):
        ablations.ablation(["breadth"], steps=8, data_dir="d")
    full, reduced = (ablations.sweep(reduced=r, steps=8, data_dir="d") for r in (False, True))
    assert len({trial.name for trial in full}) == len(full) == 90
    assert len(reduced) == 12
    assert {trial.name for trial in reduced} < {trial.name for trial in full}


@pytest.fixture
def in_program_env(program_env, monkeypatch):
    for name, value in program_env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("XLA_FLAGS")


@pytest.mark.slow
def test_a_run_is_read_from_its_files_and_not_repeated(tmp_path, in_program_env):
    trial = Trial("good", "digits:tiny", {})
    outcome = ablations.run_trial(trial, tmp_path)
    path = tmp_path / "good" / "meta_learn" / "metrics.json"
    metrics, written = json.loads(path.read_text()), path.stat().st_mtime_ns
    assert (outcome.test, outcome.pca) == (metrics["psnr"], metrics["pca_psnr"])
    assert ablations.run_trial(trial, tmp_path) == outcome
    assert path.stat().st_mtime_ns == written


@pytest.mark.slow
def test_divergence_is_an_outcome_and_other_failures_are_errors(tmp_path, in_program_env):
    wild = Trial("wild", "digits:tiny", {"meta_learn.optimizer.learning_rate": 1e6})
    outcome = ablations.run_trial(wild, tmp_path)
    assert outcome.test is None
    assert outcome.failure()
    with pytest.raises(RuntimeError, match=r"field\.depth=1"):
        ablations.run_trial(Trial("bad", "digits:tiny", {"field.depth": 1}), tmp_path)


def test_sigterm_stops_the_runs_too(tmp_path, program_env):
    waits = "trap 'touch stopped; exit 0' TERM; touch started; while :; do sleep 0.1; done"
    script = (
        f"import sys; from tools.experiments import ablations; ablations._ROOT = {str(tmp_path)!r}\n"
        f"ablations.Trial.command = lambda *_: ['sh', '-c', {waits!r}]\n"
        "sys.exit(ablations.main([]))"
    )
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, env=program_env) as sweep:
        while not (tmp_path / "started").exists():
            time.sleep(0.1)
        sweep.terminate()
        assert sweep.wait(30) == 130
    assert (tmp_path / "stopped").exists()


def test_the_drop_is_the_largest_below_an_earlier_validation(tmp_path):
    points = [[1, 30.0], [2, 33.0], [3, 32.0], [4, 32.5], [5, 34.0], [6, 33.9]]
    (tmp_path / "curves.json").write_text(json.dumps({"validation_psnr": points}))
    outcome = ablations.read_outcome("8x8", tmp_path, error="")
    assert (outcome.validation, outcome.drop) == (33.9, 1.0)


@pytest.mark.parametrize(
    ("changes", "fails"),
    [
        ({}, False),
        ({"drop": 0.6}, True),
        ({"test": 30.0}, True),
        ({"test": float("nan")}, True),
        ({"test": None}, True),
        ({"name": "1x1x256", "test": 30.0}, False),
        ({"error": "loss not finite"}, True),
    ],
)
def test_failures_of_the_sweep(changes, fails):
    good = Outcome("8x8x16", 33.0, 0.4, 33.0, 31.0, 1.0, "")
    assert bool(good._replace(**changes).failure()) == fails
