"""TensorBoard events, read back with TensorBoard's own readers."""

import io
import re
import time

import jax.numpy as jnp
import numpy as np
import pytest
from clu import asynclib
from etils.epath import backend
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image
from tensorboard.backend.event_processing import event_accumulator, plugin_event_accumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import plugin_data_pb2
from tensorboard.util import tensor_util

from functa.training.tensorboard import Dashboard, NullDashboard


def read(directory, module=event_accumulator):
    return module.EventAccumulator(str(directory), size_guidance={"tensors": 0}).Reload()


def tensors(events, tag):
    return [tensor_util.make_ndarray(event.tensor_proto) for event in events.Tensors(tag)]


def scalars(directory, tag):
    """[(step, value)] of a curve."""
    return [(event.step, event.value) for event in read(directory).Scalars(tag)]


def tensor_steps(directory, tag):
    """Steps of a tag, read as TensorBoard does."""
    return [event.step for event in read(directory, plugin_event_accumulator).Tensors(tag)]


def write_run(directory, first_step, last_step, value):
    """Writes a run that starts from a checkpoint of `first_step` and logs every second step."""
    board = Dashboard(directory, stage="meta_learn")
    board.hparams({"seed": 0})
    board.resume(first_step)
    for step in range(first_step + 1, last_step + 1):
        if step % 2 == 0:
            board.scalars(step, {"loss": value})
            board.histograms(step, {"latents": np.full(3, value)})
    board.close()


def test_scalars_of_all_number_types(tmp_path):
    directory = tmp_path / "new" / "directory"
    board = Dashboard(directory, stage="classify")
    board.scalars(2, {"loss": 1.5, "accuracy": jnp.float32(0.25)})
    board.scalars(4, {"loss": np.array([2]), "memory_bytes": 2**40})
    board.scalars(5, {"loss": np.inf})
    board.close()
    assert scalars(directory, "classify/loss") == [(2, 1.5), (4, 2), (5, np.inf)]
    assert scalars(directory, "classify/accuracy") == [(2, 0.25)]
    assert scalars(directory, "classify/memory_bytes") == [(4, 2**40)]


@pytest.mark.parametrize("channels", [1, 3])
def test_images_form_one_sheet_of_enlarged_pixels(tmp_path, channels):
    images = np.zeros((3, 8, 16, channels), np.float32)
    images[0] = 1.0
    images[2, 0, 0] = 0.2
    board = Dashboard(tmp_path, stage="s")
    board.images(5, {"pairs": images})
    board.close()
    ((width, height, encoded),) = tensors(read(tmp_path), "s/pairs")
    sheet = np.asarray(Image.open(io.BytesIO(encoded)))
    # Two columns and rows; each pixel becomes 8x8, which is also the gap.
    assert sheet.shape[:2] == (2 * 64 + 8, 2 * 128 + 8) == (int(height), int(width))
    assert sheet.ndim == (3 if channels == 3 else 2)
    assert np.all(sheet[:64, :128] == 255)
    assert np.all(sheet[:64, 136:] == 0)
    assert np.all(sheet[72:80, :8] == 51)
    assert np.all(sheet[64:72] == 128)


def test_histograms_count_finite_entries_and_report_others(tmp_path):
    values = np.concatenate([np.linspace(-1, 2, 100), [np.nan, np.inf]]).astype(np.float32)
    board = Dashboard(tmp_path, stage="s")
    board.histograms(1, {"latents": values.reshape(2, 51), "same": jnp.ones((3, 4))})
    board.close()
    events = read(tmp_path)
    (buckets,) = tensors(events, "s/latents")
    counts, edges = np.histogram(values[:100].astype(float), bins=30)
    np.testing.assert_allclose(buckets, np.stack([edges[:-1], edges[1:], counts], axis=1))
    assert scalars(tmp_path, "s/latents/not_finite") == [(1, 2)]
    (buckets,) = tensors(events, "s/same")
    assert buckets[:, 2].sum() == 12
    assert "s/same/not_finite" not in events.Tags()["scalars"]


def test_hparams(tmp_path):
    board = Dashboard(tmp_path, stage="s")
    board.hparams(
        {
            "field": {"latent_shape": (8, 8, 16), "w0": 10.0},
            "flip": True,
            "stages": ["encode", "classify"],
            "seed": np.int64(3),
        }
    )
    board.close()
    content = read(tmp_path).SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    hparams = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    assert hparams["field.latent_shape"].string_value == "8x8x16"
    assert hparams["field.w0"].number_value == 10
    assert hparams["flip"].bool_value is True
    assert hparams["stages"].string_value == "encode, classify"
    assert hparams["seed"].string_value == "3"


@pytest.mark.parametrize(
    ("stage", "name", "charts"),
    [
        ("meta_learn", "validation_psnr", ["PSNR, dB", "PSNR and baselines, dB"]),
        ("meta_learn", "inner_lr_min", ["inner learning rates"]),
        ("meta_learn", "inner_radius_0", ["learning rates x curvature"]),
        ("meta_learn", "inner_loss_0", ["loss before each inner step"]),
        ("encode", "examples_per_second", ["examples per second"]),
        ("classify", "validation_top5_accuracy", ["accuracy"]),
        ("classify", "steps_per_second", ["steps per second"]),
    ],
)
def test_charts_match_logged_names_of_their_stage(tmp_path, stage, name, charts):
    Dashboard(tmp_path, stage=stage).close()
    (serialized,) = tensors(read(tmp_path), "custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(serialized.item())
    patterns = [
        (chart.title, tag)
        for category in layout.category
        for chart in category.chart
        for tag in chart.multiline.tag
    ]
    assert [title for title, tag in patterns if re.match(tag, f"{stage}/{name}")] == charts
    assert not any(re.match(tag, f"other/{name}") for _, tag in patterns)


def test_stage_without_charts_has_no_layout(tmp_path):
    Dashboard(tmp_path, stage="other").close()
    assert read(tmp_path).Tags()["tensors"] == []


def test_resumed_run_replaces_later_events(tmp_path):
    write_run(tmp_path, 0, 10, 1.0)
    write_run(tmp_path, 4, 8, 2.0)
    write_run(tmp_path, 6, 12, 3.0)
    expected = [(2, 1), (4, 1), (6, 2), (8, 3), (10, 3), (12, 3)]
    assert scalars(tmp_path, "meta_learn/loss") == expected
    for tag in ("meta_learn/loss", "meta_learn/latents"):
        assert tensor_steps(tmp_path, tag) == [step for step, _ in expected]


def test_run_from_the_start_replaces_all_events(tmp_path):
    write_run(tmp_path, 0, 10, 1.0)
    write_run(tmp_path, 0, 4, 2.0)
    assert scalars(tmp_path, "meta_learn/loss") == [(2, 2), (4, 2)]
    assert tensor_steps(tmp_path, "meta_learn/loss") == [2, 4]


def test_killed_run_with_half_an_event_can_be_resumed(tmp_path):
    write_run(tmp_path, 0, 10, 1.0)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-5])
    write_run(tmp_path, 6, 8, 2.0)
    assert scalars(tmp_path, "meta_learn/loss") == [(2, 1), (4, 1), (6, 1), (8, 2)]


def test_names_of_later_files_are_greater_for_any_clock(tmp_path, monkeypatch):
    clock = time.time
    for offset in (3600, 0, -3600, 0):
        monkeypatch.setattr(time, "time", lambda offset=offset: clock() + offset)
        board = Dashboard(tmp_path, stage="meta_learn")
        board.scalars(1, {"offset": offset})
        board.close()
    files = sorted(tmp_path.glob("events.out.tfevents.*"))
    seconds = [int(path.name.split(".")[3]) for path in files]
    assert seconds == [seconds[0] + k for k in range(4)]


def test_failed_write_is_raised_by_flush(tmp_path):
    board = Dashboard(tmp_path, stage="s")
    board.scalars(1, {"loss": np.zeros(3)})
    with pytest.raises(asynclib.AsyncError, match="s/loss"):
        board.flush()
    board.close()


def test_remote_directory_receives_whole_files(monkeypatch):
    """An in-memory file system stands for gs://, whose files cannot be appended to."""
    monkeypatch.setattr(MemoryFileSystem, "store", {})
    monkeypatch.setattr(MemoryFileSystem, "pseudo_dirs", [""])
    remote = MemoryFileSystem()
    monkeypatch.setattr(backend.fsspec_backend, "_get_filesystem", lambda name: remote)
    board = Dashboard("gs://bucket/run/meta_learn", stage="meta_learn")
    board.scalars(1, {"loss": 1.0})
    board.flush()
    sizes = {name: len(file.getbuffer()) for name, file in remote.store.items()}
    assert len(sizes) == 1
    board.scalars(2, {"loss": 2.0})
    board.close()
    ((name, file),) = remote.store.items()
    assert len(file.getbuffer()) > sizes[name]


def test_null_dashboard_has_all_methods():
    methods = {name for name in vars(Dashboard) if not name.startswith("_")}
    assert methods == {name for name in vars(NullDashboard) if not name.startswith("_")}
