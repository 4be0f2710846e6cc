"""Runs in an object store."""

import functools
import json
import signal
import subprocess
import sys
import time
import urllib.parse
import urllib.request

import pytest

from tests.conftest import ROOT
from tests.pipeline import failures_test
from tests.pipeline.runner_test import TINY, functaset_bytes, numbers
from tests.support import processes


class Store:
    """The emulator of an object store."""

    def __init__(self, address, env):
        self.address = address
        self.env = env | {
            "STORAGE_EMULATOR_HOST": address,
            "CLOUD_STORAGE_EMULATOR_ENDPOINT": address,
            "TENSORSTORE_GCS_HTTP_URL": address,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "abc",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        }

    def names(self, prefix):
        query = urllib.parse.urlencode({"prefix": prefix})
        with urllib.request.urlopen(f"{self.address}/storage/v1/b/bucket/o?{query}") as response:
            return [item["name"] for item in json.load(response).get("items", [])]

    def download(self, prefix, folder):
        """Objects below gs://bucket/PREFIX as files below `folder`."""
        for name in self.names(f"{prefix}/"):
            place = urllib.parse.quote(name, safe="")
            with urllib.request.urlopen(
                f"{self.address}/download/storage/v1/b/bucket/o/{place}"
            ) as response:
                content = response.read()
            path = folder / name.removeprefix(f"{prefix}/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return folder

    def run(self, *arguments, timeout=300):
        return subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=ROOT,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )


@pytest.fixture(scope="module")
def store(program_env):
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.gcs_emulator", "bucket"],
        cwd=ROOT,
        env=program_env,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with process:
        yield Store(process.stdout.readline().strip(), program_env)
        process.kill()


@pytest.fixture(scope="module")
def remote(store, tmp_path_factory):
    """(copy of a complete run in the store, CompletedProcess)."""
    result = store.run(*processes.main(TINY, "--workdir=gs://bucket/run"))
    assert result.returncode == 0, result.stderr
    return store.download("run", tmp_path_factory.mktemp("remote")), result


@pytest.mark.slow
def test_run_in_a_store_equals_the_run_on_disk(remote, finished):
    folder, result = remote
    assert numbers(folder) == numbers(finished[0])
    assert functaset_bytes(folder) == functaset_bytes(finished[0])
    assert "report: gs://bucket/run/report.html" in result.stdout

    def files(folder):
        found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        return {name for name in found if "tfevents" not in name and "/step_" not in name}

    assert files(folder) == files(finished[0]) - {".lock"}
    assert "meta_learn  step 12/12" in (folder / "log.txt").read_text()
    events = sorted(path.name for path in (folder / "meta_learn").glob("events.out.tfevents.*"))
    assert len(events) == 1


@pytest.mark.slow
def test_complete_run_in_a_store_is_not_repeated(remote, store):
    result = store.run(*processes.main(TINY, "--workdir=gs://bucket/run"))
    assert result.returncode == 0, result.stderr
    assert "are complete" in result.stdout


@pytest.mark.slow
def test_functaset_in_a_store_is_verified_and_read_by_tfds(remote, store, tmp_path):
    result = store.run("-m", "functa.cli", "verify", "gs://bucket/run/functaset")
    assert result.returncode == 0, result.stderr
    read = (
        "import tensorflow_datasets as tfds; "
        "source = tfds.builder_from_directory('gs://bucket/run/functaset').as_data_source('test'); "
        "print(len(source), source[0]['latents'].shape)"
    )
    result = store.run("-c", read)
    assert result.stdout.splitlines()[-1] == "96 (2, 2, 8)", result.stderr


@pytest.mark.slow
def test_compiled_programs_are_kept_in_the_run(store, monkeypatch):
    """The disk of a TPU that is created again is empty."""
    monkeypatch.delitem(store.env, "JAX_COMPILATION_CACHE_DIR")
    stages = "--config.stages=meta_learn"
    result = store.run(*processes.main(TINY, "--workdir=gs://bucket/cached", stages))
    assert result.returncode == 0, result.stderr
    assert "Error" not in result.stderr
    assert len(store.names("cached/xla/")) > 3


@pytest.mark.parametrize(
    ("workdir", "part"),
    [
        ("gs://nowhere/run", "bucket must exist"),
        ("gs://bucket", "must be gs://BUCKET/FOLDER"),
        ("s3://bucket/run", "gs:// is the only supported"),
    ],
)
def test_unsuitable_stores_are_refused(store, workdir, part):
    result = store.run(*processes.main(TINY, f"--workdir={workdir}"))
    assert result.returncode == 2
    assert part in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_killed_processes_resume_in_a_store(store, finished, tmp_path):
    workdir = "gs://bucket/killed"
    # The lock of the killed processes counts as abandoned after a few seconds.
    env = store.env | {"NPROC": "4"}
    faults = {"*": {"constant": {"functa.pipeline.locks.RENEWAL_SECONDS": 2}}}
    start = functools.partial(failures_test.start, env, workdir, faults, TINY, devices=2)
    with start(folder=tmp_path / "one") as group:
        group.wait_for("encode  field")
        time.sleep(0.5)
        for process in group.processes:
            process.send_signal(signal.SIGKILL)
    with start(folder=tmp_path / "two") as group:
        assert group.wait() == [0, 0], group.output()
    folder = store.download("killed", tmp_path / "killed")
    assert functaset_bytes(folder).keys() == functaset_bytes(finished[0]).keys()
    for name, value in numbers(finished[0]).items():
        if isinstance(value, float):
            assert numbers(folder)[name] == pytest.approx(value, rel=1e-5), name
