"""Several processes are one: real ones, killed, stopped and contradicting each other."""

import fnmatch
import json
import shutil
import signal
import time

import jax
import numpy as np
import pytest

from functa.data.functaset import reader
from functa.pipeline import load
from functa.runtime import distributed
from functa.runtime.errors import UserError
from tests.pipeline.runner_test import TINY, functaset_bytes, numbers
from tests.support import processes

ENOUGH = 20  # seconds within which the others must have ended


@pytest.fixture(scope="session")
def program_env(program_env):
    """What launch/local.sh sees to: a process has as many threads as all together, whatever its share of devices."""
    return program_env | {"NPROC": "4"}


@pytest.fixture(scope="module")
def pair(program_env, tmp_path_factory):
    """A complete run of two processes with two devices each."""
    workdir = tmp_path_factory.mktemp("pair") / "run"
    with processes.start(program_env, workdir, TINY, count=2, devices=2) as group:
        assert group.wait() == [0, 0], group.told()
        assert "Warning" not in group.told()
    return workdir


@pytest.mark.slow
def test_two_processes_of_two_devices_give_the_numbers_of_one(pair, finished):
    one, two = numbers(finished[0]), numbers(pair)
    assert one.keys() == two.keys()
    for name, value in one.items():
        if isinstance(value, float):
            assert two[name] == pytest.approx(value, rel=1e-5), name
        elif not name.endswith(("device", "digest")):
            assert two[name] == value, name
    fields = (load.load_field(workdir)[1] for workdir in (finished[0], pair))
    jax.tree.map(lambda *leaves: np.testing.assert_allclose(*leaves, rtol=1e-4, atol=1e-5), *fields)
    for split in ("train", "validation", "test"):
        ours, theirs = (
            reader.open_functaset(workdir / "functaset", field_digest=None).source(split)
            for workdir in (finished[0], pair)
        )
        every = np.arange(ours.num_examples)
        ours, theirs = ours.read(every), theirs.read(every)
        for name in ("id", "label", "copy"):
            np.testing.assert_array_equal(ours[name], theirs[name])
        # As stored: float16 rounds what differs by 1e-7 to neighbours now and then.
        np.testing.assert_allclose(ours["latents"], theirs["latents"], rtol=2e-3, atol=1e-5)


@pytest.mark.slow
def test_processes_change_no_bit_while_the_devices_are_as_many(pair, program_env, tmp_path):
    """Order of data, random draws, sums of gradients, files: all are of the devices, not of the processes."""
    with processes.start(program_env, tmp_path / "run", TINY, count=1, devices=4) as group:
        assert group.wait() == [0], group.told()
    assert numbers(tmp_path / "run") == numbers(pair)
    assert functaset_bytes(tmp_path / "run") == functaset_bytes(pair)
    assert sample_bytes(tmp_path / "run") == sample_bytes(pair)


def sample_bytes(workdir):
    samples = workdir / "generate" / "samples"
    return {str(path.relative_to(samples)): path.read_bytes() for path in samples.rglob("*.npy")}


def test_one_generator_draws_the_same_samples_whoever_draws_them(finished, program_env, tmp_path):
    """One process has drawn some, two draw the rest."""
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
        assert group.wait() == [0, 0], group.told()
    assert sample_bytes(workdir) == expected


@pytest.mark.slow
def test_each_process_reads_and_writes_only_its_share(pair):
    parts = [
        json.loads(path.read_text()) for path in (pair / "functaset" / "shard_summaries").iterdir()
    ]
    assert len(parts) == 9
    assert not list((pair / "functaset").rglob("*.partial"))


def begun(pair, stage, tmp_path):
    """A copy of the run in which `stage` is still to be made, and the arguments for that."""
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
    """(directory, what it said) of a run of two processes after SIGTERM for one of them."""
    workdir, arguments = begun(pair, "meta_learn", tmp_path_factory.mktemp("stopped"))
    told = program_env | {"FUNCTA_STOPPED_STATUS": "75"}  # by launchers, which then start it again
    with processes.start(told, workdir, *arguments, count=2, devices=2) as group:
        group.wait_for("meta_learn  step 4/")
        group.processes[1].send_signal(signal.SIGTERM)
        begin = time.monotonic()
        assert group.wait(60) == [75, 75], group.told()
        assert time.monotonic() - begin < 30
    return workdir, [log.read_text() for log in group.logs]


@pytest.mark.slow
def test_sigterm_on_one_stops_all_at_one_step(stopped, pair, program_env, tmp_path):
    folder, logs = stopped
    stops = [log.splitlines()[-1] for log in logs]
    assert "the same command resumes the run" in stops[0]
    assert stops[0] == stops[1]
    workdir, arguments = begun(pair, "meta_learn", tmp_path)
    shutil.copytree(folder, workdir)
    with processes.start(program_env, workdir, *arguments, count=2, devices=2) as group:
        assert group.wait() == [0, 0], group.told()
        assert "resumes at step" in group.told()
    assert_same(workdir, pair, "meta_learn")


@pytest.mark.slow
def test_sigterm_while_a_stage_begins_is_not_lost(program_env, tmp_path):
    """The first step compiles for seconds; who asks whether to stop asked in another way before."""
    long = (TINY, "--config.stages=meta_learn", "--config.meta_learn.steps=100000")
    with processes.start(program_env, tmp_path / "run", *long, count=2) as group:
        group.wait_for("meta_learn  images", index=1)
        time.sleep(0.5)
        group.processes[1].send_signal(signal.SIGTERM)
        assert group.wait(60) == [0, 0], group.told()
        stops = [log.read_text().splitlines()[-1] for log in group.logs]
    assert "the same command resumes the run" in stops[0]
    assert stops[0] == stops[1]


@pytest.mark.slow
def test_a_model_that_lies_over_processes_is_saved_and_read(pair, program_env, tmp_path):
    workdir, arguments = begun(pair, "classify", tmp_path)
    wide = ("fsdp=2", "width=128", "mlp_width=256")
    settings = (f"--config.mesh.{wide[0]}", *(f"--config.classify.model.{one}" for one in wide[1:]))
    steps = {"steps": 600, "eval_every": 300, "checkpoint_every": 100}
    settings += tuple(f"--config.classify.{name}={count}" for name, count in steps.items())
    with processes.start(program_env, workdir, *arguments, *settings, count=2) as group:
        group.wait_for("classify  step 4/")
        group.processes[0].send_signal(signal.SIGTERM)
        assert group.wait(120) == [0, 0], group.told()
    # On another mesh it goes on.
    with processes.start(program_env, workdir, *arguments, *settings[1:], count=1) as group:
        assert group.wait() == [0], group.told()
        assert "classify  resumes at step" in group.told()
    assert numbers(workdir)["classify.loss"] < 1.5  # it starts at log 10


def test_unequal_processes_are_told(program_env, tmp_path):
    group = processes.Processes(
        processes.main(TINY, f"--workdir={tmp_path / 'run'}"),
        count=2,
        folder=tmp_path,
        env=program_env,
        devices=[1, 2],
    )
    with group:
        assert group.wait() == [2, 2], group.told()
        assert "process 0 has 1, process 1 has 2" in group.told()


@pytest.mark.slow
def test_sigterm_on_one_stops_encoding_everywhere(pair, program_env, tmp_path):
    workdir, arguments = begun(pair, "encode", tmp_path)
    # One record a shard, and thousands of them: a minute of work.
    many = ("shard_megabytes=1e-4", "batch_size=1", "num_augmentations=50")
    slow = (*arguments, *(f"--config.encode.{setting}" for setting in many))
    with processes.start(program_env, workdir, *slow, count=2) as group:
        group.wait_for("encode  field")
        deadline = time.monotonic() + 200
        while len(list(workdir.glob("functaset/shard_summaries/*.json"))) < 4:
            assert time.monotonic() < deadline, group.told()
            time.sleep(0.01)
        group.processes[1].send_signal(signal.SIGTERM)
        begin = time.monotonic()
        assert group.wait(60) == [0, 0], group.told()
        assert time.monotonic() - begin < 30
        for log in group.logs:
            assert "encode stopped; complete shards are kept" in log.read_text()
    assert not list(workdir.rglob("*.partial"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "kills"),
    [
        # The moment, who is killed and how many seconds after it. A run is killed twice where the first
        # time is before it has saved anything that the second moment could be missed for.
        # The first thing that is said once they know each other; before, who is left waits for minutes.
        ("meta_learn", [("digits-tiny", 0, 0.05)]),
        ("meta_learn", [("meta_learn  images", 1, 0.07), ("meta_learn  step 4/", 0, 0.5)]),
        ("meta_learn", [("meta_learn  step 12/", 1, 0.12)]),
        ("encode", [("encode  field", 0, 0.1), ("encode  field", 1, 0.3)]),
        ("classify", [("classify  func", 0, 0.1), ("classify  step 8/", 1, 0.1)]),
        ("classify", [("classify  step 12/", 0, 0.2)]),
    ],
)
def test_a_killed_process_ends_the_others_and_nothing_is_lost(
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
            assert time.monotonic() - begin < ENOUGH, group.told()
            told = group.told()
        assert statuses[victim] == -signal.SIGKILL
        assert statuses[1 - victim] != 0, told
    with processes.start(program_env, workdir, *arguments, count=2, devices=2) as group:
        assert group.wait() == [0, 0], group.told()
    assert_same(workdir, pair, stage)


@pytest.mark.slow
def test_encoding_goes_on_with_another_number_of_processes(finished, program_env, tmp_path):
    workdir, arguments = begun(finished[0], "encode", tmp_path)
    with processes.start(program_env, workdir, *arguments, count=2) as group:
        deadline = time.monotonic() + 200
        while not list(workdir.glob("functaset/shard_summaries/*.json")):
            assert time.monotonic() < deadline, group.told()
            time.sleep(0.01)
        for process in group.processes:
            process.kill()
    with processes.start(program_env, workdir, *arguments, count=3) as group:
        assert group.wait() == [0, 0, 0], group.told()
    assert functaset_bytes(workdir) == functaset_bytes(finished[0])


@pytest.mark.slow
def test_a_flipped_byte_is_seen_by_all_and_the_state_before_is_used(
    stopped, pair, program_env, tmp_path
):
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
        assert group.wait() == [0, 0], group.told()
        assert f"{newest}: " in group.told()
    assert_same(workdir, pair, "meta_learn")


def test_processes_that_differ_refuse_together(program_env, tmp_path):
    each = [
        processes.main(TINY, f"--workdir={tmp_path / 'run'}", f"--config.seed={seed}")
        for seed in (3, 4)
    ]
    with processes.Processes(each, count=2, folder=tmp_path, env=program_env) as group:
        assert group.wait() == [2, 2], group.told()
        for log in group.logs:
            assert "config.seed is 4 in process 1, but 3 in process 0" in log.read_text()
    assert not (tmp_path / "run").exists()


def test_a_work_directory_of_its_own_is_told(program_env, tmp_path):
    each = [processes.main(TINY, f"--workdir={tmp_path / name}") for name in ("here", "there")]
    with processes.Processes(each, count=2, folder=tmp_path, env=program_env) as group:
        assert group.wait() == [2, 2], group.told()
        assert "share --workdir" in group.logs[0].read_text()


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"JAX_NUM_PROCESSES": "2"}, "JAX_COORDINATOR_ADDRESS, JAX_PROCESS_ID is not"),
        ({"JAX_NUM_CPU_DEVICES": "two"}, "JAX_NUM_CPU_DEVICES=two"),
        ({"JAX_NUM_CPU_DEVICES": "0"}, "JAX_NUM_CPU_DEVICES=0"),
    ],
)
def test_a_contradiction_in_the_environment_is_told(run_main, tmp_path, variables, told):
    result = run_main(TINY, f"--workdir={tmp_path / 'run'}", env=variables)
    assert result.returncode == 2
    assert told in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (("127.0.0.1", "2", "0"), "HOST:PORT"),
        (("127.0.0.1:70000", "2", "0"), "HOST:PORT"),
        (("127.0.0.1:1234", "2", "2"), "JAX_PROCESS_ID=2"),
        (("127.0.0.1:1234", "two", "0"), "JAX_NUM_PROCESSES=two"),
    ],
)
def test_values_that_name_no_place_are_told(monkeypatch, values, told):
    """As an error that functa.main tells in the same way as the contradictions above."""
    for name, value in zip(distributed.VARIABLES, values, strict=True):
        monkeypatch.setenv(name, value)
    # What finds nobody there would end this process.
    monkeypatch.setattr(jax.distributed, "initialize", lambda **_: pytest.fail("it was taken"))
    with pytest.raises(UserError, match=told):
        distributed.initialize()


@pytest.mark.parametrize(
    ("variables", "files", "libtpu", "cluster"),
    [
        ({}, [], True, False),
        ({}, ["/dev/accel0", "/dev/accel1"], True, True),
        ({}, ["/dev/vfio/2", "/dev/vfio/3"], True, True),  # a GKE pod with two of a machine's chips
        ({}, ["/dev/vfio/vfio"], True, False),
        ({}, ["/dev/vfio/2"], False, False),
        ({"TPU_WORKER_HOSTNAMES": "run-worker-0-0.run,run-worker-0-1.run"}, [], False, True),
        ({"TPU_PROCESS_ADDRESSES": "a:8476,b:8476"}, [], False, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, [], True, False),
        ({"SLURM_STEP_NUM_TASKS": "1"}, [], True, False),
        ({"SLURM_STEP_NUM_TASKS": "2"}, [], False, True),
    ],
)
def test_what_tells_of_other_processes(monkeypatch, variables, files, libtpu, cluster):
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
