"""Retries of gs:// requests during short and long outages."""

import time
import urllib.request

import fsspec
import pytest
from etils import epath

from functa.runtime import errors, gcs_retry
from tests.pipeline import failures_test
from tests.pipeline.failures_test import META
from tests.pipeline.remote_test import store  # noqa: F401  (a fixture)
from tests.pipeline.runner_test import TINY, functaset_bytes, numbers
from tests.support import processes


def make_unavailable(store, seconds):  # noqa: F811
    urllib.request.urlopen(f"{store.address}/away/{seconds}", data=b"").close()


@pytest.fixture
def bucket(store, monkeypatch):  # noqa: F811
    """gs://bucket for this process."""
    for name, value in store.env.items():
        monkeypatch.setenv(name, value)
    gcs_retry.RetryingFileSystem.clear_instance_cache()
    yield epath.Path("gs://bucket/store")
    gcs_retry.RetryingFileSystem.clear_instance_cache()


def test_every_request_is_retried_and_logged_once(bucket, store, caplog):  # noqa: F811
    (bucket / "before").write_text("x")
    for do in (
        lambda: (bucket / "file").write_text("content"),
        lambda: (bucket / "file").read_text(),
        lambda: (bucket / "large").write_bytes(bytes(1 << 20)),
        lambda: (bucket / "before").rename(bucket / "after"),
        lambda: list(bucket.iterdir()),
        lambda: (bucket / "file").unlink(),
    ):
        caplog.clear()
        make_unavailable(store, 0.4)
        do()
        messages = [record.getMessage() for record in caplog.records if record.name == "functa"]
        assert len(messages) == 2, messages
        assert "gs:// does not answer" in messages[0]
        assert "answers again, after" in messages[1]
    assert {path.name for path in bucket.iterdir()} == {"after", "large"}
    assert isinstance(fsspec.filesystem("gs"), gcs_retry.RetryingFileSystem)


def test_long_outage_raises(bucket, store, monkeypatch):  # noqa: F811
    monkeypatch.setattr(gcs_retry, "_RETRY_SECONDS", 1.0)
    (bucket / "file").write_text("content")
    make_unavailable(store, 4)
    with pytest.raises(errors.StorageUnavailableError):
        (bucket / "file").read_text()
    # Later requests fail at once.
    begin = time.monotonic()
    with pytest.raises(errors.StorageUnavailableError):
        (bucket / "file").write_text("more")
    assert time.monotonic() - begin < 1
    time.sleep(3)
    assert (bucket / "file").read_text() == "content"


def test_missing_file_is_not_retried(bucket):
    begin = time.monotonic()
    with pytest.raises(FileNotFoundError):
        (bucket / "nothing").read_text()
    assert time.monotonic() - begin < 1


@pytest.mark.slow
def test_run_continues_after_an_outage(store, tmp_path):  # noqa: F811
    with failures_test.start(
        store.env, "gs://bucket/back", {"*": {"toy": 12}}, *META, folder=tmp_path, count=1
    ) as group:
        group.wait_for("step 4/")
        make_unavailable(store, 10)
        assert group.wait(90) == [0], group.output()
        assert "step 12/12" in group.logs[0].read_text()
    folder = store.download("back", tmp_path / "back")
    log = (folder / "log.txt").read_text()
    assert "WARNING: gs:// does not answer (" in log
    assert "WARNING: gs:// answers again, after 1" in log
    assert (folder / "meta_learn" / "metrics.json").exists()
    assert not (folder / ".lock").exists()
    assert sorted(path.name for path in (folder / "meta_learn" / "checkpoints").iterdir()) == [
        "step_12",
        "step_9",
    ]


@pytest.mark.slow
def test_long_outage_ends_all_processes_and_the_same_command_resumes(store, tmp_path):  # noqa: F811
    short_retry = {"functa.runtime.gcs_retry._RETRY_SECONDS": 5}
    workdir = "gs://bucket/away"
    with failures_test.start(
        store.env,
        workdir,
        {"*": {"toy": 12, "constant": short_retry}},
        *META,
        folder=tmp_path / "one",
    ) as group:
        group.wait_for("step 8/")
        make_unavailable(store, 25)
        assert group.wait(40) == [1, 1], group.output()
        for log in group.logs:
            assert "gs:// has not answered for" in log.read_text()
    # Starts during the outage. The ended run left a lock, which expires after three renewal periods.
    constant = {"functa.pipeline.locks.RENEWAL_SECONDS": 2}
    with failures_test.start(
        store.env, workdir, {"*": {"toy": 12, "constant": constant}}, *META, folder=tmp_path / "two"
    ) as group:
        assert group.wait(120) == [0, 0], group.output()
        assert "resumes at step" in group.output()


@pytest.mark.slow
def test_outage_of_a_minute_does_not_change_the_functaset(store, finished, tmp_path):  # noqa: F811
    command = processes.main(TINY, "--workdir=gs://bucket/minute")
    with processes.Processes(command, count=1, folder=tmp_path, env=store.env) as group:
        group.wait_for("encode  field")
        make_unavailable(store, 60)
        assert group.wait(300) == [0], group.output()
    folder = store.download("minute", tmp_path / "minute")
    assert "answers again, after 6" in (folder / "log.txt").read_text()
    assert functaset_bytes(folder) == functaset_bytes(finished[0])
    assert numbers(folder) == numbers(finished[0])
