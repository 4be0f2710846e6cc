"""CLU's writer of TensorBoard event files, without TensorFlow.

CLU's own needs TensorFlow. Ours, on TensorBoard's `EventFileWriter`, takes its place before
`clu.metric_writers` is first imported, so that everything of CLU that writes metrics works: import
it as `from functa.summary_writer import metric_writers`.
"""

import importlib
import sys
import time
import types
from collections.abc import Mapping
from typing import Any
from unittest import mock

import numpy as np
from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.plugins.histogram import metadata as histogram_metadata
from tensorboard.plugins.hparams import summary_v2 as hparams_summary
from tensorboard.plugins.image import metadata as image_metadata
from tensorboard.plugins.text import summary_v2 as text_summary
from tensorboard.summary.writer import event_file_writer
from tensorboard.util import tensor_util

from functa.runtime import image_io

BUCKETS = 30  # of a histogram, as TensorBoard's own writers


class SummaryWriter:
    """Event files as a `clu.metric_writers.MetricWriter`, whose interface describes the methods."""

    def __init__(self, logdir: str, *, not_before: int = 0):
        """not_before: the least second, since 1970, that the file may be named by."""
        clock = types.SimpleNamespace(time=lambda: max(time.time(), not_before))
        # TensorBoard takes no name.
        with mock.patch.object(event_file_writer, "time", clock):
            self._events = event_file_writer.EventFileWriter(logdir)

    def _write(self, step: int, summary: summary_pb2.Summary):
        self._events.add_event(event_pb2.Event(wall_time=time.time(), step=step, summary=summary))

    def _write_tensor(self, step: int, tag: str, array: np.ndarray, metadata):
        tensor = tensor_util.make_tensor_proto(array)
        value = summary_pb2.Summary.Value(tag=tag, metadata=metadata, tensor=tensor)
        self._write(step, summary_pb2.Summary(value=[value]))

    def restart(self, step: int):
        """From here on, what earlier files of the folder hold of `step` and later steps is void."""
        session = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._events.add_event(
            event_pb2.Event(wall_time=time.time(), step=step, session_log=session)
        )

    def write_summaries(
        self, step: int, values: Mapping[str, Any], metadata: Mapping[str, Any] | None = None
    ):
        for tag, value in values.items():
            self._write_tensor(step, tag, np.asarray(value), (metadata or {}).get(tag))

    def write_scalars(self, step: int, scalars: Mapping[str, Any]):
        values = []
        for tag, scalar in scalars.items():
            array = np.asarray(scalar)
            if array.size != 1:
                raise ValueError(f"scalar {tag!r} at step {step} has shape {list(array.shape)}")
            values.append(summary_pb2.Summary.Value(tag=tag, simple_value=float(array.reshape(()))))
        self._write(step, summary_pb2.Summary(value=values))

    def write_images(self, step: int, images: Mapping[str, Any]):
        for tag, image in images.items():
            array = np.asarray(image)
            array = array[None] if array.ndim == 3 else array
            size = [str(array.shape[2]).encode(), str(array.shape[1]).encode()]
            encoded = size + [image_io.png(one) for one in array]
            metadata = image_metadata.create_summary_metadata(display_name=None, description=None)
            self._write_tensor(step, tag, np.array(encoded, dtype=object), metadata)

    def write_videos(self, step: int, videos: Mapping[str, Any]):
        raise NotImplementedError(f"event files hold no videos; got {', '.join(videos)}")

    def write_audios(self, step: int, audios: Mapping[str, Any], *, sample_rate: int):
        raise NotImplementedError(
            f"event files written here hold no audio; got {', '.join(audios)}"
        )

    def write_texts(self, step: int, texts: Mapping[str, str]):
        for tag, text in texts.items():
            self._write(step, text_summary.text_pb(tag, text))

    def write_histograms(
        self,
        step: int,
        arrays: Mapping[str, Any],
        num_buckets: Mapping[str, int] | None = None,
    ):
        for tag, array in arrays.items():
            values = np.asarray(array).astype(np.float64).ravel()
            finite = values[np.isfinite(values)]
            if finite.size < values.size:  # a histogram has no place for them
                self.write_scalars(step, {f"{tag}/not_finite": values.size - finite.size})
            counts, edges = np.histogram(finite, bins=(num_buckets or {}).get(tag) or BUCKETS)
            metadata = histogram_metadata.create_summary_metadata(
                display_name=None, description=None
            )
            buckets = np.stack([edges[:-1], edges[1:], counts], axis=1)
            self._write_tensor(step, tag, buckets, metadata)

    def write_hparams(self, hparams: Mapping[str, Any]):
        self._write(0, hparams_summary.hparams_pb(_flat(hparams)))

    def flush(self):
        self._events.flush()

    def close(self):
        self._events.close()


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    """Leaves by their dotted path; sequences as one word: (8, 8, 16) is "8x8x16"."""
    flat = {}
    for key, value in tree.items():
        if hasattr(value, "items"):
            flat.update(_flat(value, f"{prefix}{key}."))
        elif isinstance(value, list | tuple):
            numbers = all(isinstance(one, int | float) for one in value)
            flat[prefix + key] = ("x" if numbers else ", ").join(str(one) for one in value)
        else:
            plain = isinstance(value, bool | int | float | str)
            flat[prefix + key] = value if plain else str(value)
    return flat


def _import_metric_writers() -> types.ModuleType:
    """CLU's metric writers, with our SummaryWriter unless a program has imported them before."""
    name = "clu.metric_writers.tf.summary_writer"
    if "clu.metric_writers" not in sys.modules:
        module = types.ModuleType(name, SummaryWriter.__doc__)
        module.__dict__["SummaryWriter"] = SummaryWriter
        sys.modules[name] = module
    metric_writers = importlib.import_module("clu.metric_writers")
    metric_writers.MetricWriter.register(SummaryWriter)
    return metric_writers


metric_writers = _import_metric_writers()
