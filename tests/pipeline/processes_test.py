"""Runs of several real processes: equal results, stops, kills and contradicting settings."""

import fnmatch
import shutil
import signal
import time

import jax
import numpy as np
import pytest

from functa.cli.run import run_config
from functa.configs import digits
from functa.data.functaset import reader
from functa.pipeline import load
from functa.runtime import distributed
from functa.runtime.errors import UserError
from tests.pipeline.runner_test import TINY, functaset_bytes, numbers
from tests.support import processes

END_SECONDS = 20  # in which the other processes must end


@pytest.fixture(scope="session")
def program_env(program_env):
    """Every process has as many threads as all together, as launch/local.sh sees to."""
    return program_env | {"NPROC": "4"}


@pytest.fixture(scope="module")
def pair(program_env, tmp_path_factory):
    """A complete run of two processes with two devices each."""
    workdir = tmp_path_factory.mktemp("pair") / "run"
    with processes.start(program_env, workdir, TINY, count=2, devices=2) as group:
        assert group.wait() == [0, 0], group.output()
        assert "Warning" not in group.output()
    return workdir


@pytest.mark.slow
def test_two_processes_of_two_devices_give_the_numbers_of_one(pair, finished):
    assert_equal_numbers(finished[0], pair)


@pytest.mark.slow
def test_sixteen_devices_give_the_numbers_of_one(finished, program_env, tmp_path):
    """The batches of digits:tiny have 16 examples; 40 validation images need padding."""
    workdir = tmp_path / "run"
    with processes.start(program_env, workdir, TINY, count=2, devices=8) as group:
        assert group.wait() == [0, 0], group.output()
    assert_equal_numbers(finished[0], workdir)


def assert_equal_numbers(first, second):
    """Equal metrics, fields and functasets of two runs, up to rounding."""
    one, two = numbers(first), numbers(second)
    assert one.keys() == two.keys()
    for name, value in one.items():
        if isinstance(value, float):
            assert two[name] == pytest.approx(value, rel=1e-5), name
        elif not name.endswith(("device", "digest")):
            assert two[name] == value, name
    fields = (load.load_field(workdir)[1] for workdir in (first, second))
    jax.tree.map(lambda *leaves: np.testing.assert_allclose(*leaves, rtol=1e-4, atol=1e-5), *fields)
    for split in ("train", "validation", "test"):
        ours, theirs = (
            reader.open_functaset(workdir / "functaset", field_digest=None).source(split)
            for workdir in (first, second)
        )
        every = np.arange(ours.num_examples)
        ours, theirs = ours.read(every), theirs.read(every)
        for name in ("id", "label", "copy"):
            np.testing.assert_array_equal(ours[name], theirs[name])
        # float16 may round values that differ by 1e-7 to neighbors.
        np.testing.assert_allclose(ours["latents"], theirs["latents"], rtol=2e-3, atol=1e-5)


@pytest.mark.slow
def test_number_of_processes_changes_no_bit_for_equally_many_devices(pair, program_env, tmp_path):
    with processes.start(program_env, tmp_path / "run", TINY, count=1, devices=4) as group:
        assert group.wait() == [0], group.output()
    assert numbers(tmp_path / "run") == numbers(pair)
    assert functaset_bytes(tmp_path / "run") == functaset_bytes(pair)
    assert sample_bytes(tmp_path / "run") == sample_bytes(pair)


def sample_bytes(workdir):
    samples = workdir / "generate" / "samples"
    return {str(path.relative_to(samples)): path.read_bytes() for path in samples.rglob("*.npy")}


@pytest.mark.slow
def test_samples_do_not_depend_on_the_number_of_processes(finished, program_env, tmp_path):
    """One process has written some blocks, two processes write the rest."""
    workdir = tmp_path / "run"
    shutil.copytree(finished[0], workdir)
    (workdir / "generate" / "metrics.json").unlink()
    expected = sample_bytes(finished[0])
    assert len(expected) == 12
    for name in list(expected)[::3]:
        (workdir / "generate" / "samples" / name).unlink()
    env = {name: value for name, value in program_env.items() if name != "NPROC"}
    arguments = (TINY, "--config.stages=generate")
    with processes.start(env, workdir, *arguments, count=2) as group:
        assert group.wait() == [0, 0], group.output()
    assert sample_bytes(workdir) == expected


def begun(pair, stage, tmp_path):
    """(directory, arguments): a copy of the run without `stage`, and what runs it."""
    workdir = tmp_path / "run"
    if stage != "meta_learn":
        shutil.copytree(pair, workdir)
    for folder in {"encode": ("encode", "functaset", "classify"), "classify": ("classify",)}.get(
        stage, ()
    ):
        shutil.rmtree(workdir / folder)
    return workdir, (TINY, f"--config.stages={stage}")


def assert_same(workdir, pair, stage):
    made, expected = (
        {name: value for name, value in numbers(where).items() if name.startswith(f"{stage}.")}
        for where in (workdir, pair)
    )
    assert made == expected
    if stage == "encode":
        assert functaset_bytes(workdir) == functaset_bytes(pair)


@pytest.fixture(scope="module")
def stopped(pair, program_env, tmp_path_factory):
    """(directory, logs) of a run of two processes after SIGTERM to one of them."""
    workdir, arguments = begun(pair, "meta_learn", tmp_path_factory.mktemp("stopped"))
    env = program_env | {"FUNCTA_STOPPED_STATUS": "75"}
    with processes.start(env, workdir, *arguments, count=2, devices=2) as group:
        group.wait_for("meta_learn  step 4/")
        group.processes[1].send_signal(signal.SIGTERM)
        begin = time.monotonic()
        assert group.wait(60) == [75, 75], group.output()
        assert time.monotonic() - begin < 30
    return workdir, [log.read_text() for log in group.logs]


@pytest.mark.slow
def test_sigterm_to_one_process_stops_all_at_the_same_step(stopped, pair, program_env, tmp_path):
    folder, logs = stopped
    stops = [log.splitlines()[-1] for log in logs]
    assert "the same command resumes the run" in stops[0]
    assert stops[0] == stops[1]
    workdir, arguments = begun(pair, "meta_learn", tmp_path)
    shutil.copytree(folder, workdir)
    with processes.start(program_env, workdir, *arguments, count=2, devices=2) as group:
        assert group.wait() == [0, 0], group.output()
        assert "resumes at step" in group.output()
    assert_same(workdir, pair, "meta_learn")


@pytest.mark.slow
def test_sigterm_before_the_first_step_stops_all(program_env, tmp_path):
    """The first step compiles for seconds."""
    long = (TINY, "--config.stages=meta_learn", "--config.meta_learn.steps=100000")
    with processes.start(program_env, tmp_path / "run", *long, count=2) as group:
        group.wait_for("meta_learn  images", index=1)
        time.sleep(0.5)
        group.processes[1].send_signal(signal.SIGTERM)
        assert group.wait(60) == [0, 0], group.output()
        stops = [log.read_text().splitlines()[-1] for log in group.logs]
    assert "the same command resumes the run" in stops[0]
    assert stops[0] == stops[1]


@pytest.mark.slow
def test_model_sharded_over_processes_is_saved_and_restored(pair, program_env, tmp_path):
    workdir, arguments = begun(pair, "classify", tmp_path)
    wide = ("fsdp=2", "width=128", "mlp_width=256")
    settings = (f"--config.mesh.{wide[0]}", *(f"--config.classify.model.{one}" for one in wide[1:]))
    steps = {"steps": 600, "eval_every": 300, "checkpoint_every": 100}
    settings += tuple(f"--config.classify.{name}={count}" for name, count in steps.items())
    with processes.start(program_env, workdir, *arguments, *settings, count=2) as group:
        group.wait_for("classify  step 4/")
        group.processes[0].send_signal(signal.SIGTERM)
        assert group.wait(120) == [0, 0], group.output()
    # Resumes on another mesh.
    with processes.start(program_env, workdir, *arguments, *settings[1:], count=1) as group:
        assert group.wait() == [0], group.output()
        assert "classify  resumes at step" in group.output()
    assert numbers(workdir)["classify.loss"] < 1.5  # it starts at log 10


@pytest.mark.slow
def test_unequal_numbers_of_devices_are_refused(program_env, tmp_path):
    group = processes.Processes(
        processes.main(TINY, f"--workdir={tmp_path / 'run'}"),
        count=2,
        folder=tmp_path,
        env=program_env,
        devices=[1, 2],
    )
    with group:
        assert group.wait() == [2, 2], group.output()
        assert "process 0 has 1, process 1 has 2" in group.output()


@pytest.mark.slow
def test_sigterm_to_one_process_stops_encoding_in_all(pair, program_env, tmp_path):
    workdir, arguments = begun(pair, "encode", tmp_path)
    # Thousands of shards of one record: a minute of work.
    many = ("shard_megabytes=1e-4", "batch_size=1", "num_augmentations=50")
    slow = (*arguments, *(f"--config.encode.{setting}" for setting in many))
    with processes.start(program_env, workdir, *slow, count=2) as group:
        group.wait_for("encode  field")
        deadline = time.monotonic() + 200
        while len(list(workdir.glob("functaset/shard_summaries/*.json"))) < 4:
            assert time.monotonic() < deadline, group.output()
            time.sleep(0.01)
        group.processes[1].send_signal(signal.SIGTERM)
        begin = time.monotonic()
        assert group.wait(60) == [0, 0], group.output()
        assert time.monotonic() - begin < 30
        for log in group.logs:
            assert "encode stopped; complete shards are kept" in log.read_text()
    assert not list(workdir.rglob("*.partial"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "kills"),
    [
        # Line of the log, process that is killed, seconds after the line. "digits-tiny" is the first
        # line after the processes have connected; before that, the others wait for minutes.
        ("meta_learn", [("digits-tiny", 0, 0.05), ("meta_learn  step 4/", 1, 0.5)]),
        ("encode", [("encode  field", 0, 0.1)]),
        ("classify", [("classify  func", 0, 0.1), ("classify  step 8/", 1, 0.1)]),
    ],
)
def test_killed_process_ends_the_others_and_the_run_resumes(
    pair, program_env, tmp_path, stage, kills
):
    workdir, arguments = begun(pair, stage, tmp_path)
    for moment, victim, seconds in kills:
        with processes.start(program_env, workdir, *arguments, count=2, devices=2) as group:
            group.wait_for(moment)
            time.sleep(seconds)
            group.processes[victim].send_signal(signal.SIGKILL)
            begin = time.monotonic()
            statuses = group.wait(60)
            assert time.monotonic() - begin < END_SECONDS, group.output()
            output = group.output()
        assert statuses[victim] == -signal.SIGKILL
        assert statuses[1 - victim] != 0, output
    with processes.start(program_env, workdir, *arguments, count=2, devices=2) as group:
        assert group.wait() == [0, 0], group.output()
    assert_same(workdir, pair, stage)


@pytest.mark.slow
def test_encoding_resumes_with_another_number_of_processes(finished, program_env, tmp_path):
    workdir, arguments = begun(finished[0], "encode", tmp_path)
    with processes.start(program_env, workdir, *arguments, count=2) as group:
        deadline = time.monotonic() + 200
        while not list(workdir.glob("functaset/shard_summaries/*.json")):
            assert time.monotonic() < deadline, group.output()
            time.sleep(0.01)
        for process in group.processes:
            process.kill()
    with processes.start(program_env, workdir, *arguments, count=3) as group:
        assert group.wait() == [0, 0, 0], group.output()
    assert functaset_bytes(workdir) == functaset_bytes(finished[0])


@pytest.mark.slow
def test_all_processes_skip_a_damaged_checkpoint(stopped, pair, program_env, tmp_path):
    workdir, arguments = begun(pair, "meta_learn", tmp_path)
    shutil.copytree(stopped[0], workdir)
    saved = (workdir / "meta_learn" / "checkpoints").glob("step_*")
    newest = max(saved, key=lambda path: int(path.name.removeprefix("step_")))
    files = (path for path in newest.rglob("*") if path.is_file())
    largest = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 0x10
    largest.write_bytes(content)
    with processes.start(program_env, workdir, *arguments, count=2, devices=2) as group:
        assert group.wait() == [0, 0], group.output()
        assert f"{newest}: " in group.output()
    assert_same(workdir, pair, "meta_learn")


def test_different_configs_are_refused_by_all_processes(program_env, tmp_path):
    each = [
        processes.main(TINY, f"--workdir={tmp_path / 'run'}", f"--config.seed={seed}")
        for seed in (3, 4)
    ]
    with processes.Processes(each, count=2, folder=tmp_path, env=program_env) as group:
        assert group.wait() == [2, 2], group.output()
        for log in group.logs:
            assert "config.seed is 4 in process 1, but 3 in process 0" in log.read_text()
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_different_work_directories_are_refused(program_env, tmp_path):
    each = [processes.main(TINY, f"--workdir={tmp_path / name}") for name in ("here", "there")]
    with processes.Processes(each, count=2, folder=tmp_path, env=program_env) as group:
        assert group.wait() == [2, 2], group.output()
        assert "share --workdir" in group.logs[0].read_text()


@pytest.mark.parametrize("count", ["two", "0"])
def test_invalid_number_of_devices_is_refused(monkeypatch, tmp_path, count):
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", count)
    with pytest.raises(UserError, match=f"JAX_NUM_CPU_DEVICES={count}"):
        run_config(digits.get_config("tiny"), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("values", "part"),
    [
        (("127.0.0.1", "2", "0"), "HOST:PORT"),
        (("127.0.0.1:70000", "2", "0"), "HOST:PORT"),
        (("127.0.0.1:1234", "2", "2"), "JAX_PROCESS_ID=2"),
        (("127.0.0.1:1234", "two", "0"), "JAX_NUM_PROCESSES=two"),
        (("", "2", ""), "JAX_COORDINATOR_ADDRESS, JAX_PROCESS_ID"),
    ],
)
def test_invalid_addresses_of_processes_are_refused(monkeypatch, values, part):
    for name, value in zip(distributed.VARIABLES, values, strict=True):
        monkeypatch.setenv(name, value)
    # With a valid address, it would end this process.
    monkeypatch.setattr(jax.distributed, "initialize", lambda **_: pytest.fail("initialized"))
    with pytest.raises(UserError, match=part):
        distributed.initialize()


@pytest.mark.parametrize(
    ("variables", "files", "libtpu", "cluster"),
    [
        ({}, [], True, False),
        ({}, ["/dev/accel0", "/dev/accel1"], True, True),
        ({}, ["/dev/vfio/2", "/dev/vfio/3"], True, True),  # a GKE pod with two chips
        ({}, ["/dev/vfio/vfio"], True, False),
        ({}, ["/dev/vfio/2"], False, False),
        ({"TPU_WORKER_HOSTNAMES": "run-worker-0-0.run,run-worker-0-1.run"}, [], False, True),
        ({"TPU_PROCESS_ADDRESSES": "a:8476,b:8476"}, [], False, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, [], True, False),
        ({"SLURM_STEP_NUM_TASKS": "1"}, [], True, False),
        ({"SLURM_STEP_NUM_TASKS": "2"}, [], False, True),
    ],
)
def test_clusters_are_detected(monkeypatch, variables, files, libtpu, cluster):
    names = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
    for name in (*names, "TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(distributed.glob, "glob", lambda pattern: fnmatch.filter(files, pattern))
    monkeypatch.setattr(
        distributed.importlib.util, "find_spec", lambda name: object() if libtpu else None
    )
    assert distributed._jax_detects_processes() == cluster
