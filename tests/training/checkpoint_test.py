import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import multihost_utils

from functa.runtime.errors import UserError
from functa.training import checkpoint


def state(value):
    return {"a": jnp.full((300,), value, jnp.float32), "b": [jnp.int32(value)]}


def template():
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), state(0)
    )


def flip_bytes(directory):
    """One byte in the middle of every file that holds numbers."""
    files = [
        path for path in (directory / "state").rglob("*") if path.is_file() and "/d/" in str(path)
    ]
    assert files
    for path in files:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 0x10
        path.write_bytes(content)


def test_the_newest_comes_back_exactly_and_old_ones_go(tmp_path):
    checkpoints = checkpoint.Checkpoints(tmp_path, keep=2)
    assert checkpoints.restore(template()) is None
    for step in (1, 2, 3):
        checkpoints.save(step, state(step), {"seconds": step / 10})
    checkpoints.wait()
    assert checkpoints.steps() == [2, 3]
    step, restored, info = checkpoints.restore(template())
    assert (step, info) == (3, {"seconds": 0.3})
    np.testing.assert_array_equal(restored["a"], np.full(300, 3, np.float32))
    checkpoints.close()


def test_a_relative_directory_will_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoints = checkpoint.Checkpoints("here", keep=1)
    checkpoints.save(1, state(1), {})
    checkpoints.wait()
    assert checkpoints.restore(template())[0] == 1
    checkpoints.close()
    assert (tmp_path / "here" / "step_1").is_dir()


def test_a_flipped_byte_is_noticed_and_the_one_before_is_used(tmp_path, caplog):
    checkpoints = checkpoint.Checkpoints(tmp_path, keep=2)
    for step in (1, 2):
        checkpoints.save(step, state(step), {})
        checkpoints.wait()
    checkpoints.close()
    flip_bytes(tmp_path / "step_2")
    checkpoints = checkpoint.Checkpoints(tmp_path, keep=2)
    step, restored, _ = checkpoints.restore(template())
    assert step == 1
    assert float(restored["a"][0]) == 1
    assert "step_2" in caplog.text
    assert checkpoints.steps() == [1]
    checkpoints.save(2, state(2), {})  # the damaged step is saved again, not taken for done
    checkpoints.wait()
    assert checkpoints.restore(template())[0] == 2
    checkpoints.close()


def test_only_damaged_ones_left_is_an_error_that_names_them(tmp_path):
    checkpoints = checkpoint.Checkpoints(tmp_path, keep=2)
    checkpoints.save(7, state(7), {})
    checkpoints.wait()
    flip_bytes(tmp_path / "step_7")
    with pytest.raises(ValueError, match="step_7"):
        checkpoints.restore(template())
    checkpoints.close()


def test_arrays_that_meant_something_else_are_refused_and_kept(tmp_path, monkeypatch):
    with monkeypatch.context() as earlier:
        earlier.setattr(checkpoint, "_FORMAT", 1)
        checkpoints = checkpoint.Checkpoints(tmp_path, keep=2)
        for step in (1, 2):
            checkpoints.save(step, state(step), {})
        checkpoints.wait()
    with pytest.raises(UserError, match="step_2 has format 1, this program reads"):
        checkpoints.restore(template())
    assert checkpoints.steps() == [1, 2]
    checkpoints.close()


def test_half_a_checkpoint_is_ignored(tmp_path):
    checkpoints = checkpoint.Checkpoints(tmp_path, keep=2)
    checkpoints.save(1, state(1), {})
    checkpoints.wait()
    checkpoints.close()
    (tmp_path / "step_2").mkdir()  # what a killed copy leaves
    checkpoints = checkpoint.Checkpoints(tmp_path, keep=2)
    assert checkpoints.restore(template())[0] == 1
    checkpoints.close()


def test_digest_sees_values_types_and_names():
    one = checkpoint.digest(state(1))
    assert one == checkpoint.digest(jax.tree.map(np.asarray, state(1)))
    assert one.startswith("sha256:")
    others = [
        state(2),
        {"a": state(1)["a"]},
        jax.tree.map(lambda x: x.astype(jnp.float16), state(1)),
    ]
    assert len({one, *map(checkpoint.digest, others)}) == 4


def test_saving_does_not_ask_whether_to_stop(tmp_path, monkeypatch):
    """To ask tells the other processes which step this one has come to; that of an old save would be a lie."""
    asked = []
    monkeypatch.setattr(
        multihost_utils, "reached_preemption_sync_point", lambda step: asked.append(step) or False
    )
    checkpoints = checkpoint.Checkpoints(tmp_path, keep=1)
    for step in (1, 2):
        checkpoints.save(step, state(1.0), {})
    checkpoints.close()
    assert asked == []
