"""launch/local.sh and launch/explore.sh: arguments, processes, restarts and signals."""

import os
import re
import time

import pytest

MAIN = ["-P", "-m", "functa.main"]
EXPLORE = ["-P", "-m", "functa.cli", "explore"]


def test_local_passes_the_config_and_arguments(project):
    arguments = ("--workdir=my runs/one", "--config.field.width=128")
    result = project.run("local.sh", "example:8x8x16,tiny", *arguments)
    assert result.returncode == 0, result.stderr
    config = f"--config={project.root}/configs/example.py:8x8x16,tiny"
    # The working directory is the caller's, so that --workdir can be relative.
    assert project.main_arguments() == [str(project.folder), *MAIN, config, *arguments]
    assert project.called() == ["venv 3.11", "pip ."]


def test_local_returns_the_exit_status_and_installs_the_extra(project):
    project.main.write_text("exit 7")
    assert project.run("local.sh", "example", FUNCTA_EXTRA="cuda").returncode == 7
    assert project.called() == ["venv 3.11", "pip .[cuda12]"]


@pytest.mark.parametrize(
    ("extra", "platforms"),
    [("", ""), ("cuda", "cuda,cpu"), ("cuda13", "cuda,cpu"), ("tpu", "tpu,cpu")],
)
def test_local_requires_the_accelerator_and_passes_variables_on(project, extra, platforms):
    project.main.write_text('echo "$JAX_PLATFORMS|$XLA_FLAGS|$OTHER"')
    words = ("--env=XLA_FLAGS=--a=1 --b", "--env=OTHER=")
    result = project.run("local.sh", "example", *words, FUNCTA_EXTRA=extra, OTHER="x")
    assert result.stdout == f"{platforms}|--a=1 --b|\n"
    assert project.run("local.sh", "example", "--env=2=3").returncode == 2


@pytest.mark.parametrize("name", ["exampel", "common", "configs/example.py", ""])
def test_local_lists_the_configs_for_an_unknown_name(project, name):
    result = project.run("local.sh", name)
    assert result.returncode == 2
    message, _, configs = result.stderr.partition("\n")
    assert f"'{name}'" in message
    assert "  example\n" in configs
    assert "common" not in configs
    assert project.called() == []


@pytest.mark.parametrize(
    "arguments",
    [
        *(["--proceses=2"], ["--config=x.py"], ["--workdir", "2"], ["width=3"], ["--processes"]),
        *(["--processes=0"], ["--processes=two"], ["--restart=-1"], ["--restart="]),
        *(["--restart=08"], ["--devices=0"], ["--devices=3", "--processes=2"]),
    ],
)
def test_local_refuses_invalid_arguments(project, arguments):
    result = project.run("local.sh", "example", *arguments)
    assert result.returncode == 2
    assert arguments[0] in result.stderr
    assert project.called() == []


def test_local_connects_processes_and_divides_cores(project):
    project.main.write_text(
        'echo "$JAX_PROCESS_ID of $JAX_NUM_PROCESSES at $JAX_COORDINATOR_ADDRESS"; taskset -cp $$'
    )
    result = project.run("local.sh", "example:tiny", "--processes", "2", "--config.seed=1")
    assert result.returncode == 0, result.stderr
    logs = [project.folder / f"runs/example-tiny.logs/process-{k}.log" for k in range(2)]
    first, second = (log.read_text().splitlines() for log in logs)
    assert result.stdout.splitlines() == first  # only process 0 is shown
    assert re.fullmatch(r"0 of 2 at 127\.0\.0\.1:\d+", first[0])
    assert second[0] == first[0].replace("0 of", "1 of", 1)
    if len(os.sched_getaffinity(0)) > 1:
        assert first[1].split(":")[1] != second[1].split(":")[1]
    assert "--config.seed=1" in project.main_arguments()


@pytest.mark.parametrize("processes", [1, 2])
def test_local_divides_devices_but_not_threads(project, processes):
    """So that results do not depend on the number of processes."""
    project.main.write_text('echo "$JAX_NUM_CPU_DEVICES of $NPROC"')
    result = project.run("local.sh", "example:tiny", f"--processes={processes}", "--devices", "4")
    assert result.stdout.splitlines() == [f"{4 // processes} of 8"]


def test_local_ends_with_the_status_of_the_process_that_failed(project):
    project.main.write_text('[ "$JAX_PROCESS_ID" = 0 ] || exit 7; sleep 1; exit 1')
    result = project.run("local.sh", "example", "--processes=3", "--workdir=my runs/one")
    assert result.returncode == 7
    assert "my runs/one.logs/process-" in result.stderr


@pytest.mark.slow
def test_local_kills_processes_that_hang_after_a_failure(project):
    project.main.write_text('[ "$JAX_PROCESS_ID" = 0 ] || exit 7; exec sleep 100')
    begin = time.monotonic()
    assert project.run("local.sh", "example", "--processes=2").returncode == 7
    assert time.monotonic() - begin < 20


@pytest.mark.parametrize("processes", [1, 2])
def test_local_restarts_after_a_failure_but_not_after_a_user_error(project, processes):
    tries = project.folder / "calls.txt.tries"
    for status, runs in ((3, 3), (2, 1)):
        project.main.write_text(f'echo "$JAX_PROCESS_ID" >>"$CALLS.tries"; exit {status}')
        arguments = (f"--processes={processes}", "--restart=2")
        assert project.run("local.sh", "example", *arguments).returncode == status
        assert len(tries.read_text().splitlines()) == runs * processes
        tries.unlink()


def test_local_forwards_sigterm(project):
    project.main.write_text(
        'trap "echo saved; exit 0" TERM; echo ready; while :; do sleep 0.1; done'
    )
    process = project.start("local.sh", "example", "--processes=2", "--restart=3")
    logs = [project.folder / f"runs/example.logs/process-{k}.log" for k in range(2)]
    deadline = time.monotonic() + 20
    while not all(log.exists() and "ready" in log.read_text() for log in logs):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.terminate()
    process.communicate(timeout=20)
    assert process.returncode == 0
    assert all("saved" in log.read_text() for log in logs)


@pytest.mark.parametrize("script", ["local.sh", "tpu_pod.sh", "slurm.sh"])
def test_help_lists_the_configs(project, script):
    result = project.run(script, "--help")
    assert result.returncode == 0
    assert f"usage: launch/{script} NAME[:OPTIONS]" in result.stdout
    assert "\n  example\n" in result.stdout
    result = project.run(script)
    assert result.returncode == 2
    assert "usage:" in result.stderr


def test_explore_installs_its_extra_and_starts_the_page(project):
    (project.folder / "my runs").mkdir()
    result = project.run("explore.sh", "my runs", "--port", "7000", "--data-dir=my data")
    assert result.returncode == 0, result.stderr
    options = ["--port=7000", "--data-dir=my data", "--", "my runs"]
    assert project.main_arguments() == [str(project.folder), *EXPLORE, *options]
    assert project.called() == ["venv 3.11", "pip .[explore]"]
    project.main.write_text("exit 7")
    assert project.run("explore.sh", "my runs").returncode == 7
    assert project.main_arguments()[1:] == [*EXPLORE, "--", "my runs"]
    assert project.called() == []


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        ([], "usage:"),
        (["configs", "launch"], "launch"),
        (["no/such"], "no/such"),
        (["configs", "--prot=7000"], "--prot=7000"),
        (["configs", "--port"], "--port"),
    ],
)
def test_explore_refuses_invalid_arguments_before_it_installs(project, arguments, key):
    for name in ("configs", "launch"):
        (project.folder / name).mkdir()
    result = project.run("explore.sh", *arguments)
    assert result.returncode == 2
    assert key in result.stderr
    assert project.called() == []
