"""The dashboard's events, read back by TensorBoard's own readers, and the script that shows them."""

import inspect
import io
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request

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

from functa.training import tensorboard
from functa.training.tensorboard import Dashboard, NullDashboard

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "launch" / "dashboard.sh"


def read(folder, module=event_accumulator):
    return module.EventAccumulator(str(folder), size_guidance={"tensors": 0}).Reload()


def tensors(events, tag):
    return [tensor_util.make_ndarray(event.tensor_proto) for event in events.Tensors(tag)]


def steps_and_values(folder, tag):
    return [(event.step, event.value) for event in read(folder).Scalars(tag)]


def test_scalars_of_any_kind_of_number(tmp_path):
    board = Dashboard(tmp_path / "new" / "folder", stage="classify")
    board.scalars(2, {"loss": 1.5, "accuracy": jnp.float32(0.25)})
    board.scalars(4, {"loss": np.array([2]), "memory_bytes": 2**40})
    board.close()
    folder = tmp_path / "new" / "folder"
    assert steps_and_values(folder, "classify/loss") == [(2, 1.5), (4, 2)]
    assert steps_and_values(folder, "classify/accuracy") == [(2, 0.25)]
    assert steps_and_values(folder, "classify/memory_bytes") == [(4, 2**40)]


def test_scalars_that_are_not_finite_stay_as_they_are(tmp_path):
    board = Dashboard(tmp_path, stage="s")
    for step, value in enumerate((np.nan, np.inf, -np.inf), 1):
        board.scalars(step, {"loss": value})
    board.close()
    values = [value for _, value in steps_and_values(tmp_path, "s/loss")]
    np.testing.assert_array_equal(values, [np.nan, np.inf, -np.inf])


@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_one_sheet_of_enlarged_squares(tmp_path, channels):
    images = np.zeros((3, 8, 16, channels), np.float32)
    images[0] = 1.0
    images[2, 0, 0] = 0.2
    board = Dashboard(tmp_path, stage="s")
    board.images(5, {"pairs": images})
    board.close()
    ((width, height, encoded),) = tensors(read(tmp_path), "s/pairs")
    sheet = np.asarray(Image.open(io.BytesIO(encoded)))
    # Two across, two down; a pixel is enlarged to 8x8, and so wide is the gap.
    assert sheet.shape[:2] == (2 * 64 + 8, 2 * 128 + 8) == (int(height), int(width))
    assert sheet.ndim == (3 if channels == 3 else 2)
    assert np.all(sheet[:64, :128] == 255)
    assert np.all(sheet[:64, 136:] == 0)
    assert np.all(sheet[72:80, :8] == 51)
    assert np.all(sheet[64:72] == 128)


def test_histograms_count_everything_and_name_what_is_not_finite(tmp_path):
    values = np.concatenate([np.linspace(-1, 2, 100), [np.nan, np.inf]]).astype(np.float32)
    board = Dashboard(tmp_path, stage="s")
    board.histograms(1, {"latents": values.reshape(2, 51), "same": jnp.ones((3, 4))})
    board.close()
    events = read(tmp_path)
    (buckets,) = tensors(events, "s/latents")
    counts, edges = np.histogram(values[:100].astype(float), bins=30)
    np.testing.assert_array_equal(buckets[:, 2], counts)
    np.testing.assert_allclose(buckets[:, 0], edges[:-1])
    np.testing.assert_allclose(buckets[:, 1], edges[1:])
    assert steps_and_values(tmp_path, "s/latents/not_finite") == [(1, 2)]
    (buckets,) = tensors(events, "s/same")
    assert buckets[:, 2].sum() == 12
    assert "s/same/not_finite" not in events.Tags()["scalars"]


def test_text_and_settings(tmp_path):
    board = Dashboard(tmp_path, stage="s")
    board.text(0, {"note": "**bold**"})
    board.hparams(
        {
            "field": {"latent_shape": (8, 8, 16), "w0": 10.0, "coordinates": "local"},
            "flip": True,
            "stages": ["encode", "classify"],
            "seed": np.int64(3),
            "none": None,
        }
    )
    board.close()
    events = read(tmp_path)
    assert tensors(events, "s/note") == [b"**bold**"]
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    hparams = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    assert hparams["field.latent_shape"].string_value == "8x8x16"
    assert hparams["field.w0"].number_value == 10
    assert hparams["field.coordinates"].string_value == "local"
    assert hparams["flip"].bool_value is True
    assert hparams["stages"].string_value == "encode, classify"
    assert hparams["seed"].string_value == "3"
    assert hparams["none"].string_value == "None"


# What the stages log, and the charts it must be found in.
LOGGED = {
    "meta_learn": {
        "psnr": ["PSNR, dB", "PSNR and baselines, dB"],
        "validation_psnr": ["PSNR, dB", "PSNR and baselines, dB"],
        "test_psnr": ["PSNR, dB", "PSNR and baselines, dB"],
        "test_psnr_of_mean_mse": ["PSNR and baselines, dB"],
        "pca_psnr": ["PSNR and baselines, dB"],
        "loss": ["loss"],
        "gradient_norm": ["gradient norm"],
        "learning_rate": ["learning rate"],
        "update_ratio": ["update / weight ratio"],
        "inner_lr_mean": ["inner rates"],
        "inner_lr_min": ["inner rates"],
        "inner_lr_max": ["inner rates"],
        "inner_radius_0": ["rates x curvature"],
        "inner_loss_0": ["loss before each inner step"],
        "steps_per_second": ["steps per second"],
        "images_per_second": ["examples per second"],
        "peak_bytes": ["memory, bytes"],
    },
    "encode": {"psnr": ["PSNR, dB"], "examples_per_second": ["examples per second"]},
    "classify": {
        "accuracy": ["accuracy"],
        "validation_accuracy": ["accuracy"],
        "validation_top5_accuracy": ["accuracy"],
        "loss": ["loss"],
        "test_loss": ["loss"],
        "learning_rate": ["learning rate"],
        "steps_per_second": ["steps per second"],
    },
}


@pytest.mark.parametrize("stage", sorted(LOGGED))
def test_layout_groups_the_curves_of_its_stage(tmp_path, stage):
    Dashboard(tmp_path, stage=stage).close()
    (serialized,) = tensors(read(tmp_path), "custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(serialized.item())
    titles = [category.title for category in layout.category]
    assert titles == [f"{stage}: {name}" for name in tensorboard.LAYOUTS[stage]]
    patterns = {
        chart.title: tag
        for category in layout.category
        for chart in category.chart
        for tag in chart.multiline.tag
    }
    other = {"meta_learn": "classify", "classify": "encode", "encode": "meta_learn"}[stage]
    for name, charts in LOGGED[stage].items():
        found = [t for t, pattern in patterns.items() if re.match(pattern, f"{stage}/{name}")]
        assert found == charts, name
        assert not any(re.match(p, f"{other}/{name}") for p in patterns.values())


def test_a_stage_without_charts_has_no_layout(tmp_path):
    board = Dashboard(tmp_path, stage="other")
    board.scalars(1, {"loss": 1.0})
    board.close()
    assert read(tmp_path).Tags()["tensors"] == []


def write_run(folder, first_step, last_step, value):
    """A run from a checkpoint of `first_step` that logs every second step."""
    board = Dashboard(folder, stage="meta_learn")
    board.hparams({"seed": 0})
    board.resume(first_step)
    board.text(0, {"note": "text"})
    for step in range(first_step + 1, last_step + 1):
        if step % 2 == 0:
            board.scalars(step, {"loss": value})
            board.histograms(step, {"latents": np.full(3, value)})
    board.close()


def test_a_resumed_run_leaves_no_doubled_tail(tmp_path):
    write_run(tmp_path, 0, 10, 1.0)
    write_run(tmp_path, 4, 8, 2.0)
    write_run(tmp_path, 6, 12, 3.0)
    expected = [(2, 1), (4, 1), (6, 2), (8, 3), (10, 3), (12, 3)]
    assert steps_and_values(tmp_path, "meta_learn/loss") == expected
    # The reader that TensorBoard itself uses, which also drops pictures and histograms.
    events = read(tmp_path, plugin_event_accumulator)
    for tag in ("meta_learn/loss", "meta_learn/latents"):
        assert [event.step for event in events.Tensors(tag)] == [step for step, _ in expected]
    for tag in ("meta_learn/note", "custom_scalars__config__", "_hparams_/session_start_info"):
        assert {event.step for event in events.Tensors(tag)} == {0}


def test_a_first_run_need_not_know_that_it_is_the_first(tmp_path):
    board = Dashboard(tmp_path, stage="meta_learn")
    for step in (2, 4, 6):
        board.scalars(step, {"loss": 1.0})
    board.close()
    write_run(tmp_path, 2, 4, 2.0)
    events = read(tmp_path, plugin_event_accumulator)
    assert [event.step for event in events.Tensors("meta_learn/loss")] == [2, 4]


def test_files_of_one_second_keep_their_order(tmp_path):
    """Readers sort by name; the counter behind the second would put the tenth before the ninth."""
    for _ in range(3):
        Dashboard(tmp_path, stage="s").close()
    seconds = [path.name.split(".")[3] for path in tmp_path.iterdir()]
    assert len(set(seconds)) == 3


def test_a_run_from_the_start_replaces_all_steps(tmp_path):
    write_run(tmp_path, 0, 10, 1.0)
    write_run(tmp_path, 0, 4, 2.0)
    assert steps_and_values(tmp_path, "meta_learn/loss") == [(2, 2), (4, 2)]
    events = read(tmp_path, plugin_event_accumulator)
    assert [event.step for event in events.Tensors("meta_learn/loss")] == [2, 4]


def test_a_killed_run_is_continued_after_half_an_event(tmp_path):
    write_run(tmp_path, 0, 10, 1.0)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-5])
    write_run(tmp_path, 6, 8, 2.0)
    assert steps_and_values(tmp_path, "meta_learn/loss") == [(2, 1), (4, 1), (6, 1), (8, 2)]


def test_flush_makes_everything_readable(tmp_path):
    board = Dashboard(tmp_path, stage="s")
    board.scalars(1, {"loss": 1.0})
    board.flush()
    assert steps_and_values(tmp_path, "s/loss") == [(1, 1)]
    board.close()


def test_a_failed_write_is_raised(tmp_path):
    board = Dashboard(tmp_path, stage="s")
    board.scalars(1, {"loss": np.zeros(3)})
    with pytest.raises(asynclib.AsyncError, match=r"'s/loss' at step 1 has shape \[3\]"):
        board.flush()
    board.close()


def test_remote_folders_get_whole_files(monkeypatch):
    """A file system in memory stands in for gs://, whose files cannot be appended to."""
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


def test_other_processes_write_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, method in inspect.getmembers(Dashboard, inspect.isfunction):
        if not name.startswith("_"):
            assert inspect.signature(method) == inspect.signature(getattr(NullDashboard, name))
    board = NullDashboard()
    board.resume(1)
    board.scalars(1, {"loss": 1.0})
    board.images(1, {"a": np.zeros((1, 2, 2, 1))})
    board.histograms(1, {"a": np.zeros(3)})
    board.hparams({"a": 1})
    board.text(1, {"a": "b"})
    board.flush()
    board.close()
    assert not list(tmp_path.iterdir())


def launch(*arguments, path=None):
    environment = {**os.environ, **({} if path is None else {"PATH": path})}
    return subprocess.run(
        [SCRIPT, *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no run given"),
        (["missing/run"], "no run directory missing/run"),
        ([".", "missing/run"], "no run directory missing/run"),
        ([".", "--port"], "--port needs a number"),
        ([".", "--port", "0"], "--port 0: a port is a whole number"),
        ([".", "--port=65536"], "--port 65536: a port is a whole number"),
        ([".", "--prot", "1"], "unknown option --prot"),
    ],
)
def test_the_script_refuses_what_it_cannot_show(arguments, message):
    done = launch(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert not done.stdout


def test_the_script_tells_what_it_starts(tmp_path):
    """A stand-in for TensorBoard on the PATH prints what it is called with."""
    root = tmp_path / "project"
    (root / "launch").mkdir(parents=True)
    script = root / "launch" / "dashboard.sh"
    script.write_bytes(SCRIPT.read_bytes())
    script.chmod(0o755)
    runs = [tmp_path / "a b", tmp_path / "c", tmp_path / "more" / "c", tmp_path / "d,e"]
    for run in runs:
        run.mkdir(parents=True)
    (tmp_path / "bin").mkdir()
    fake = tmp_path / "bin" / "tensorboard"

    def call(*arguments):
        done = subprocess.run(
            [script, *arguments],
            env={**os.environ, "PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout.splitlines(), done.stderr

    status, _, error = call(runs[0])
    assert status == 2
    assert "no tensorboard in" in error
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    fake.chmod(0o755)
    local = ["--host", "127.0.0.1"]
    assert call(runs[0])[1] == [*local, "--logdir", str(runs[0])]
    assert call(runs[3])[1] == [*local, "--logdir", str(runs[3])]
    two = f"a b:{runs[0]},c:{runs[1]}"
    assert call(f"{runs[0]}/", runs[1], "--port", "81")[1] == [
        *(*local, "--logdir_spec", two),
        *("--port", "81"),
    ]
    alike = f"{runs[1]}:{runs[1]},{runs[2]}:{runs[2]}"
    assert call(runs[1], runs[2])[1] == [*local, "--logdir_spec", alike]
    status, _, error = call(runs[0], runs[3])
    assert status == 2
    assert "comma or colon" in error
    (root / ".venv" / "bin").mkdir(parents=True)
    fake.rename(root / ".venv" / "bin" / "tensorboard")
    assert call(runs[0])[1] == [*local, "--logdir", str(runs[0])]


@pytest.mark.slow
@pytest.mark.parametrize("runs", [1, 2])
def test_tensorboard_serves_the_runs(tmp_path, runs):
    for run in range(runs):
        write_run(tmp_path / f"run{run}" / "meta_learn", 0, 10, 1.0)
        write_run(tmp_path / f"run{run}" / "meta_learn", 4, 8, 2.0)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folders = [tmp_path / f"run{run}" for run in range(runs)]
    path = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
    # The script replaces itself by TensorBoard, so that ending its process ends TensorBoard.
    process = subprocess.Popen(
        [SCRIPT, *folders, "--port", str(port)],
        env={**os.environ, "PATH": path},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    name = "meta_learn" if runs == 1 else "run1/meta_learn"

    def fetch(address):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/data/{address}", timeout=30) as page:
            return json.load(page)

    def until(ready, seconds=60.0):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            assert process.poll() is None
            try:
                if result := ready():
                    return result
            except OSError:  # not listening yet
                time.sleep(0.2)
            time.sleep(0.1)
        return pytest.fail("TensorBoard did not answer")

    def curve():
        query = urllib.parse.urlencode({"run": name, "tag": "meta_learn/loss"})
        if "meta_learn/loss" in fetch("plugin/scalars/tags").get(name, {}):
            points = fetch(f"plugin/scalars/scalars?{query}")
            return points if points[-1][1:] == [8, 2.0] else None
        return None

    try:
        points = until(curve)
        assert [point[1:] for point in points] == [[2, 1.0], [4, 1.0], [6, 2.0], [8, 2.0]]
        layout = fetch("plugin/custom_scalars/layout")
        assert [category["title"] for category in layout["category"]] == [
            f"meta_learn: {category}" for category in tensorboard.LAYOUTS["meta_learn"]
        ]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
    with pytest.raises(OSError, match="refused"):
        fetch("runs")


def test_a_later_file_has_a_later_name_whatever_the_clock_says(tmp_path, monkeypatch):
    real = time.time
    for ahead in (3600, 0, -3600, 0):
        monkeypatch.setattr(time, "time", lambda ahead=ahead: real() + ahead)
        writer = tensorboard.Dashboard(tmp_path, stage="meta_learn")
        writer.scalars(1, {"ahead": ahead})
        writer.close()
    files = sorted(tmp_path.glob("events.out.tfevents.*"))
    seconds = [int(path.name.split(".")[3]) for path in files]
    assert seconds == [seconds[0] + k for k in range(4)]
