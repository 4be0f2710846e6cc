"""Sweeps of runs: real runs of the smallest size, and the judgement of what they showed."""

import dataclasses
import functools
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tools.experiments import stability as bench_stability  # noqa: E402
from tools.experiments import (
    study,  # noqa: E402
    trials,  # noqa: E402
)

TINY = "configs/digits.py:tiny"
GOOD = trials.Trial("good", TINY, {})
WILD = trials.Trial("wild", TINY, {"meta_learn.optimizer.learning_rate": 1e6})


def times_of(directory):
    names = ("metrics.json", "curves.json", "diverged.json")
    return {path: path.stat().st_mtime_ns for name in names for path in directory.rglob(name)}


@pytest.fixture(scope="module")
def swept(tmp_path_factory, program_env):
    """(directory, outcomes, files with their times) of a sweep of a good and a diverging run."""
    directory = tmp_path_factory.mktemp("sweep")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in program_env.items():
            patch.setenv(name, value)
        outcomes = trials.run_all([GOOD, WILD], directory)
    times = times_of(directory)
    return directory, outcomes, times


def test_a_run_is_read_from_its_own_files(swept):
    directory, (good, _), _ = swept
    metrics = json.loads((directory / "good" / "meta_learn" / "metrics.json").read_text())
    assert (good.test, good.pca) == (metrics["psnr"], metrics["pca_psnr"])
    assert good.steps == 12
    assert good.best >= good.last > 0
    assert not good.diverged
    assert trials.row(good)[-2] == f"{metrics['seconds']:.0f}"


def test_a_run_that_diverges_is_a_row_not_an_error(swept):
    _, (_, wild), _ = swept
    assert "of step" in wild.diverged
    assert "is not finite" in wild.diverged
    assert wild.test is None
    assert "diverged" in trials.row(wild)
    assert bench_stability.failures([wild]) == [f"wild: {wild.diverged}"]


def test_what_is_complete_is_not_run_again(swept, capsys, program_env, monkeypatch):
    directory, outcomes, times = swept
    for name, value in program_env.items():
        monkeypatch.setenv(name, value)
    assert trials.run_all([GOOD, WILD], directory) == outcomes
    assert times_of(directory) == times
    table = capsys.readouterr().out.splitlines()
    assert len(table) == 4
    assert all(line.count("|") == len(trials.COLUMNS) + 1 for line in table)


def test_another_failure_stops_with_its_words(tmp_path, program_env, monkeypatch):
    for name, value in program_env.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RuntimeError, match=r"field\.depth=1"):
        trials.run_all([trials.Trial("bad", TINY, {"field.depth": 1})], tmp_path)


def test_a_crash_is_no_divergence(tmp_path, monkeypatch):
    crash = subprocess.CompletedProcess([], 1, "", "RuntimeError: out of memory\n")
    monkeypatch.setattr(trials.Runs, "run", lambda *args: crash)
    with pytest.raises(RuntimeError, match="out of memory"):
        trials.run(GOOD, tmp_path, trials.Runs())


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core has no two shares")
def test_jobs_run_at_once_on_cores_of_their_own_and_are_told_ordered_results(tmp_path, monkeypatch):
    outcome = trials.Outcome(GOOD, 1.0, 1.0, 0.0, 1.0, 1.0, 1, 1.0, "", "")
    both, cores = threading.Barrier(2, timeout=60), []

    def run(trial, directory, runs):
        cores.append(os.sched_getaffinity(0))
        both.wait()
        time.sleep(0.1 if trial.name == "first" else 0)
        return dataclasses.replace(outcome, trial=trial)

    monkeypatch.setattr(trials, "run", run)
    planned = [trials.Trial(name, TINY, {}) for name in ("first", "second")]
    before = os.sched_getaffinity(0)
    outcomes = trials.run_all(planned, tmp_path, jobs=2)
    assert [outcome.trial.name for outcome in outcomes] == ["first", "second"]
    assert os.sched_getaffinity(0) == before == cores[0] | cores[1]
    assert not cores[0] & cores[1]


def test_a_stopped_sweep_leaves_no_run_behind(tmp_path, program_env):
    """SIGTERM: the run saves and ends, those that wait do not begin."""
    endless = {"meta_learn.steps": 10**6, "meta_learn.eval_every": 10**6}
    code = (
        f"import sys, pathlib; from tools.experiments import trials\n"
        f"planned = [trials.Trial(name, {TINY!r}, {endless!r}) for name in ('first', 'second')]\n"
        f"trials.run_all(planned, pathlib.Path({str(tmp_path)!r}))"
    )
    sweep = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=program_env)
    try:
        limit = time.monotonic() + 120
        while not list(tmp_path.glob("first/meta_learn/checkpoints/step_*")):
            assert sweep.poll() is None
            assert time.monotonic() < limit
            time.sleep(0.2)
    finally:
        sweep.terminate()
        status = sweep.wait(60)
    assert status == 143
    running = [file.read_bytes() for file in Path("/proc").glob("[0-9]*/cmdline") if file.exists()]
    assert not [line for line in running if str(tmp_path).encode() in line]
    assert not (tmp_path / "second").exists()


@pytest.mark.parametrize("trial", [GOOD, WILD], ids=lambda trial: trial.name)
def test_what_was_made_with_other_settings_is_refused(swept, program_env, monkeypatch, trial):
    directory, _, _ = swept
    for name, value in program_env.items():
        monkeypatch.setenv(name, value)
    other = dataclasses.replace(trial, changes=trial.changes | {"meta_learn.steps": 13})
    with pytest.raises(RuntimeError, match=r"meta_learn.steps|other settings"):
        trials.run_all([other], directory)


def test_the_largest_drop_is_below_the_best_before(tmp_path):
    stage = tmp_path / "good" / "meta_learn"
    stage.mkdir(parents=True)
    points = [[1, 30.0], [2, 33.0], [3, 32.0], [4, 32.5], [5, 34.0], [6, 33.9]]
    (stage / "curves.json").write_text(json.dumps({"validation_psnr": points}))
    (stage / "metrics.json").write_text(json.dumps({"psnr": 33.0, "pca_psnr": 31.0, "steps": 6}))
    outcome = trials.read(GOOD, tmp_path)
    assert (outcome.best, outcome.last) == (34.0, 33.9)
    assert outcome.largest_drop == pytest.approx(1.0)
    assert bench_stability.failures([outcome]) == ["good: fell by 1.00 dB"]
    calm = dataclasses.replace(outcome, largest_drop=0.4)
    assert bench_stability.failures([calm]) == []
    no_number = dataclasses.replace(calm, test=float("nan"))
    assert bench_stability.failures([no_number]) == ["good: nan dB, PCA 31.00"]
    low = dataclasses.replace(calm, test=30.0)
    assert bench_stability.failures([low]) == ["good: 30.00 dB, PCA 31.00"]
    nothing = dataclasses.replace(calm, test=None)
    assert bench_stability.failures([nothing]) == ["good: no result"]
    one_cell = dataclasses.replace(low, trial=trials.Trial("1x1x256-nearest", TINY, {}))
    assert bench_stability.failures([one_cell]) == []


def test_sweeps_hold_what_they_say():
    whole = bench_stability.plan(reduced=False, steps=800, data_dir="data")
    assert len({trial.name for trial in whole}) == len(whole) == 5 * 2 * 3 * 3
    reduced = bench_stability.plan(reduced=True, steps=800, data_dir="data")
    assert len(reduced) == 12
    assert {trial.name for trial in reduced} < {trial.name for trial in whole}
    rows = study.plan(["width", "depth-4"], steps=800, data_dir="data")
    assert [trial.name for trial in rows] == ["base", "width-32", "width-128", "depth-4"]
    with pytest.raises(ValueError, match="no row begins with breadth"):
        study.plan(["breadth"], steps=800, data_dir="data")


@pytest.mark.parametrize("trial", study.plan([], steps=800, data_dir="data"), ids=lambda t: t.name)
def test_every_row_of_the_study_is_a_setting_that_works(trial):
    """The config takes its changes and finds no fault in them; nothing is run."""
    from configs import cifar10_spatial
    from functa.training.tasks import meta_learning

    config = cifar10_spatial.get_config(trial.config.partition(":")[2])
    known = config.to_dict()
    for key, value in trial.changes.items():
        *path, last = key.split(".")
        old = functools.reduce(dict.__getitem__, path, known)[last]
        assert type(value) is type(old), key  # as flags read them
    config.update_from_flattened_dict(trial.changes)
    assert meta_learning.validate(config) == []


@pytest.mark.parametrize(
    ("tool", "arguments"), [("stability", ["--json={}"]), ("study", ["--directory={}/file"])]
)
def test_where_nothing_can_be_written_is_told_before_the_work(
    tmp_path, monkeypatch, capsys, tool, arguments
):
    (tmp_path / "file").write_text("")
    (tmp_path / "cifar10" / "1.0.0").mkdir(parents=True)
    (tmp_path / "cifar10" / "1.0.0" / "dataset_info.json").write_text("{}")
    monkeypatch.setattr(trials, "run_all", lambda *args, **options: pytest.fail("it began"))
    options = [option.format(tmp_path) for option in arguments]
    with pytest.raises(SystemExit) as stop:
        {"stability": bench_stability, "study": study}[tool].main(
            [f"--data_dir={tmp_path}", *options]
        )
    assert stop.value.code == 2
    assert str(tmp_path) in capsys.readouterr().err


def test_a_run_that_failed_is_no_field_that_fell(tmp_path, monkeypatch, capsys):
    def run_all(*args, **options):
        raise RuntimeError("was killed by signal 9")

    monkeypatch.setattr(trials, "run_all", run_all)
    monkeypatch.setattr(trials, "check", lambda *args, **options: str(tmp_path))
    for tool in (bench_stability, study):
        assert tool.main([f"--directory={tmp_path}"]) == 3
        assert "signal 9" in capsys.readouterr().err


@pytest.mark.parametrize("tool", ["stability", "study"])
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--steps=5"], "at least 80, not 5"),
        (["--jobs=0"], "--jobs must be 1 to"),
        (["--data_dir=nowhere"], "nowhere/cifar10"),
    ],
)
def test_bad_arguments_are_told(tool, arguments, told):
    command = [sys.executable, "-m", f"tools.experiments.{tool}", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert told in done.stderr
