"""gs:// that is away for a while, and for too long."""

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


def send_away(store, seconds):  # noqa: F811
    urllib.request.urlopen(f"{store.address}/away/{seconds}", data=b"").close()


@pytest.fixture
def bucket(store, monkeypatch):  # noqa: F811
    """gs://bucket for this process."""
    for name, value in store.env.items():
        monkeypatch.setenv(name, value)
    gcs_retry.RetryingFileSystem.clear_instance_cache()
    yield epath.Path("gs://bucket/store")
    gcs_retry.RetryingFileSystem.clear_instance_cache()


def test_every_request_waits_and_tells_it_once(bucket, store, caplog):  # noqa: F811
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
        send_away(store, 0.4)
        do()
        told = [record.getMessage() for record in caplog.records if record.name == "functa"]
        assert len(told) == 2, told
        assert "gs:// does not answer" in told[0]
        assert "answers again, after" in told[1]
    assert {path.name for path in bucket.iterdir()} == {"after", "large"}
    assert isinstance(fsspec.filesystem("gs"), gcs_retry.RetryingFileSystem)


def test_a_store_that_stays_away_is_given_up(bucket, store, monkeypatch):  # noqa: F811
    monkeypatch.setattr(gcs_retry, "_RETRY_SECONDS", 1.0)
    (bucket / "file").write_text("content")
    send_away(store, 4)
    with pytest.raises(
        errors.StorageUnavailableError, match="has not answered for . s .*the same command"
    ):
        (bucket / "file").read_text()
    # What comes after is not waited for once more.
    begin = time.monotonic()
    with pytest.raises(errors.StorageUnavailableError):
        (bucket / "file").write_text("more")
    assert time.monotonic() - begin < 1
    time.sleep(3)
    assert (bucket / "file").read_text() == "content"


def test_what_is_not_there_is_not_waited_for(bucket):
    begin = time.monotonic()
    with pytest.raises(FileNotFoundError):
        (bucket / "nothing").read_text()
    assert time.monotonic() - begin < 1


@pytest.mark.slow
def test_a_run_goes_on_when_the_store_is_back(store, tmp_path):  # noqa: F811
    with failures_test.start(
        store.env, "gs://bucket/back", {"*": {"toy": 12}}, *META, folder=tmp_path, count=1
    ) as group:
        group.wait_for("step 4/")
        send_away(store, 10)
        assert group.wait(90) == [0], group.told()
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
def test_a_store_that_stays_away_ends_all_and_the_same_command_goes_on(store, tmp_path):  # noqa: F811
    patience = {"functa.runtime.gcs_retry._RETRY_SECONDS": 5}
    workdir = "gs://bucket/away"
    with failures_test.start(
        store.env, workdir, {"*": {"toy": 12, "constant": patience}}, *META, folder=tmp_path / "one"
    ) as group:
        group.wait_for("step 8/")
        send_away(store, 25)
        assert group.wait(40) == [1, 1], group.told()
        for log in group.logs:
            assert "gs:// has not answered for" in log.read_text()
    # It may well be started before the store is back.
    # What has died there has left its lock, which is watched for three times so long.
    constant = {"functa.pipeline.locks.RENEWAL_SECONDS": 2}
    with failures_test.start(
        store.env, workdir, {"*": {"toy": 12, "constant": constant}}, *META, folder=tmp_path / "two"
    ) as group:
        assert group.wait(120) == [0, 0], group.told()
        assert "resumes at step" in group.told()


@pytest.mark.slow
def test_a_functaset_is_the_same_after_a_minute_without_a_store(store, finished, tmp_path):  # noqa: F811
    command = processes.main(TINY, "--workdir=gs://bucket/minute")
    with processes.Processes(command, count=1, folder=tmp_path, env=store.env) as group:
        group.wait_for("encode  field")
        send_away(store, 60)
        assert group.wait(300) == [0], group.told()
    folder = store.download("minute", tmp_path / "minute")
    assert "answers again, after 6" in (folder / "log.txt").read_text()
    assert functaset_bytes(folder) == functaset_bytes(finished[0])
    assert numbers(folder) == numbers(finished[0])
