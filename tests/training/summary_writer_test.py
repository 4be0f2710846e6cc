"""CLU's metric writers over our SummaryWriter: everything that writes metrics, and no TensorFlow."""

import subprocess
import sys

import numpy as np
import pytest
from tensorboard.backend.event_processing import event_accumulator

from functa.training.summary_writer import SummaryWriter, metric_writers


def read(folder):
    return event_accumulator.EventAccumulator(str(folder), size_guidance={"tensors": 0}).Reload()


def test_clu_takes_our_writer_for_its_own(tmp_path):
    assert metric_writers.SummaryWriter is SummaryWriter
    assert issubclass(SummaryWriter, metric_writers.MetricWriter)
    missing = metric_writers.MetricWriter.__abstractmethods__ - set(vars(SummaryWriter))
    assert not missing
    with metric_writers.ensure_flushes(metric_writers.create_default_writer(tmp_path)) as writer:
        writer.write_scalars(3, {"loss": np.float32(0.5)})
    (event,) = read(tmp_path).Scalars("loss")
    assert (event.step, event.value) == (3, 0.5)


def test_a_fresh_program_needs_no_tensorflow():
    program = (
        "import sys; sys.modules['tensorflow'] = None\n"  # any import of it now fails
        "from functa.training import summary_writer\n"
        "from clu import metric_writers, periodic_actions\n"
        "assert metric_writers.SummaryWriter is summary_writer.SummaryWriter\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_a_program_that_has_imported_clu_keeps_its_own(tmp_path):
    program = (
        "import sys, types\n"
        "theirs = types.ModuleType('clu.metric_writers.tf.summary_writer')\n"
        "theirs.SummaryWriter = type('SummaryWriter', (), {})\n"
        "sys.modules[theirs.__name__] = theirs\n"
        "from clu import metric_writers\n"
        "from functa.training import summary_writer\n"
        "assert metric_writers.SummaryWriter is theirs.SummaryWriter\n"
        "summary_writer.SummaryWriter(sys.argv[1]).close()\n"
    )
    subprocess.run([sys.executable, "-c", program, tmp_path / "run"], check=True, timeout=60)


def test_a_scalar_is_one_number(tmp_path):
    writer = SummaryWriter(str(tmp_path))
    with pytest.raises(ValueError, match=r"'loss' at step 7 has shape \[2\]"):
        writer.write_scalars(7, {"loss": np.zeros(2)})
    writer.write_scalars(8, {"loss": np.ones((1, 1))})
    writer.close()
    assert [event.step for event in read(tmp_path).Scalars("loss")] == [8]


@pytest.mark.parametrize("kind", ["videos", "audios"])
def test_what_cannot_be_written_is_refused(tmp_path, kind):
    writer = SummaryWriter(str(tmp_path))
    arguments = {"sample_rate": 8000} if kind == "audios" else {}
    with pytest.raises(NotImplementedError, match="clip"):
        getattr(writer, f"write_{kind}")(0, {"clip": np.zeros((1, 4, 4, 1))}, **arguments)
    writer.close()
