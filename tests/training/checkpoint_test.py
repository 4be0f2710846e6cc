"""Checkpoints: exact values, damage, interrupted saves and formats."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import multihost_utils

from functa.runtime.errors import DamagedFileError, UserError
from functa.training import checkpoint


def state(value):
    return {"a": jnp.full((300,), value, jnp.float32), "b": [jnp.int32(value)]}


def template():
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), state(0)
    )


def save(checkpoints, *steps):
    for step in steps:
        checkpoints.save(step, state(step), {"seconds": step / 10})
        checkpoints.wait()


def flip_bytes(directory):
    """Flips one bit in the middle of every file of arrays."""
    files = [
        path for path in (directory / "state").rglob("*") if path.is_file() and "/d/" in str(path)
    ]
    assert files
    for path in files:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 0x10
        path.write_bytes(content)


@pytest.fixture
def open_checkpoints():
    """Opens Checkpoints and closes them after the test."""
    opened = []

    def open_(directory, keep=2):
        opened.append(checkpoint.Checkpoints(directory, keep=keep))
        return opened[-1]

    yield open_
    for checkpoints in opened:
        checkpoints.close()


def test_newest_checkpoint_is_restored_and_old_ones_deleted(
    tmp_path, monkeypatch, open_checkpoints
):
    monkeypatch.chdir(tmp_path)
    checkpoints = open_checkpoints("relative")
    assert checkpoints.restore(template()) is None
    save(checkpoints, 1, 2, 3)
    assert checkpoints.steps() == [2, 3]
    step, restored, info = checkpoints.restore(template())
    assert (step, info) == (3, {"seconds": 0.3})
    assert checkpoints.info(2) == {"seconds": 0.2}
    np.testing.assert_array_equal(restored["a"], np.full(300, 3, np.float32))
    checkpoints.remove_after(2)
    assert checkpoints.steps() == [2]


def test_step_cannot_be_saved_twice(tmp_path, open_checkpoints):
    checkpoints = open_checkpoints(tmp_path)
    save(checkpoints, 2)
    with pytest.raises(ValueError, match="step 2"):
        save(checkpoints, 2)


def test_damaged_checkpoint_is_replaced_by_the_previous_one(tmp_path, open_checkpoints, caplog):
    save(open_checkpoints(tmp_path), 1, 2)
    flip_bytes(tmp_path / "step_2")
    checkpoints = open_checkpoints(tmp_path)
    step, restored, _ = checkpoints.restore(template())
    assert step == 1
    assert float(restored["a"][0]) == 1
    assert "step_2" in caplog.text
    assert checkpoints.steps() == [1]
    save(checkpoints, 2)
    assert checkpoints.restore(template())[0] == 2


def test_error_names_all_damaged_checkpoints(tmp_path, open_checkpoints):
    checkpoints = open_checkpoints(tmp_path)
    save(checkpoints, 6, 7)
    for step in (6, 7):
        flip_bytes(tmp_path / f"step_{step}")
    with pytest.raises(DamagedFileError, match=r"(?s)step_7.*step_6"):
        checkpoints.restore(template())


def test_other_format_is_rejected_and_kept(tmp_path, monkeypatch, open_checkpoints):
    checkpoints = open_checkpoints(tmp_path)
    with monkeypatch.context() as earlier_version:
        earlier_version.setattr(checkpoint, "FORMAT", 1)
        save(checkpoints, 1, 2)
    with pytest.raises(UserError, match="step_2 has format 1"):
        checkpoints.restore(template())
    assert checkpoints.steps() == [1, 2]


def test_incomplete_checkpoint_is_ignored(tmp_path, open_checkpoints):
    save(open_checkpoints(tmp_path), 1)
    (tmp_path / "step_2").mkdir()  # left by an interrupted copy
    assert open_checkpoints(tmp_path).restore(template())[0] == 1


def test_digest_depends_on_values_types_and_names():
    digest = checkpoint.digest(state(1))
    assert digest == checkpoint.digest(jax.tree.map(np.asarray, state(1)))
    others = [
        state(2),
        {"a": state(1)["a"]},
        {"a": state(1)["a"], "c": state(1)["b"]},
        jax.tree.map(lambda x: x.astype(jnp.float16), state(1)),
    ]
    assert len({digest, *map(checkpoint.digest, others)}) == 5


def test_saves_do_not_poll_for_preemption(tmp_path, monkeypatch, open_checkpoints):
    polls = []
    monkeypatch.setattr(
        multihost_utils, "reached_preemption_sync_point", lambda step: polls.append(step) or False
    )
    save(open_checkpoints(tmp_path, keep=1), 1, 2)
    assert polls == []
