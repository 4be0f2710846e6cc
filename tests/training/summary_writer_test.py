"""The event file writer as a metric writer of CLU, without TensorFlow."""

import subprocess
import sys

import numpy as np
import pytest

from functa.training.clu_metric_writers import metric_writers
from functa.training.summary_writer import SummaryWriter
from tests.training.tensorboard_test import scalars


def run_program(program, *arguments):
    subprocess.run([sys.executable, "-c", program, *arguments], check=True, timeout=60)


def test_clu_uses_this_writer(tmp_path):
    assert metric_writers.SummaryWriter is SummaryWriter
    assert not metric_writers.MetricWriter.__abstractmethods__ - set(vars(SummaryWriter))
    writer = metric_writers.create_default_writer(tmp_path)
    with metric_writers.ensure_flushes(writer):
        writer.write_scalars(3, {"loss": np.float32(0.5)})
    writer.close()
    assert scalars(tmp_path, "loss") == [(3, 0.5)]


def test_clu_works_without_tensorflow():
    run_program(
        "import sys; sys.modules['tensorflow'] = None\n"  # makes every import of it fail
        "from functa.training import clu_metric_writers, summary_writer\n"
        "from clu import metric_writers, periodic_actions\n"
        "assert metric_writers.SummaryWriter is summary_writer.SummaryWriter\n"
    )


def test_program_that_imported_clu_keeps_its_writer(tmp_path):
    run_program(
        "import sys, types\n"
        "module = types.ModuleType('clu.metric_writers.tf.summary_writer')\n"
        "module.SummaryWriter = type('SummaryWriter', (), {})\n"
        "sys.modules[module.__name__] = module\n"
        "from clu import metric_writers\n"
        "from functa.training.tensorboard import Dashboard\n"
        "assert metric_writers.SummaryWriter is module.SummaryWriter\n"
        "Dashboard(sys.argv[1], stage='s').close()\n",
        str(tmp_path / "run"),
    )


def test_scalar_must_have_one_element(tmp_path):
    writer = SummaryWriter(str(tmp_path))
    with pytest.raises(ValueError, match=r"'loss' at step 7 .*\[2\]"):
        writer.write_scalars(7, {"loss": np.zeros(2)})
    writer.write_scalars(8, {"loss": np.ones((1, 1))})
    writer.close()
    assert scalars(tmp_path, "loss") == [(8, 1)]


@pytest.mark.parametrize(("kind", "settings"), [("videos", {}), ("audios", {"sample_rate": 8000})])
def test_unsupported_media_are_rejected(tmp_path, kind, settings):
    writer = SummaryWriter(str(tmp_path))
    with pytest.raises(NotImplementedError, match="clip"):
        getattr(writer, f"write_{kind}")(0, {"clip": np.zeros((1, 4, 4, 1))}, **settings)
    writer.close()
