"""Writer of TensorBoard event files that does not need TensorFlow."""

import itertools
import os
import socket
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.plugins.histogram import metadata as histogram_metadata
from tensorboard.plugins.hparams import summary_v2 as hparams_summary
from tensorboard.plugins.image import metadata as image_metadata
from tensorboard.plugins.text import summary_v2 as text_summary
from tensorboard.summary.writer.record_writer import RecordWriter
from tensorboard.util import tensor_util

from functa.runtime import image_io

_HISTOGRAM_BUCKETS = 30  # as in TensorBoard's own writers
_file_numbers = itertools.count()


class SummaryWriter:
    """Event file writer with the interface of clu.metric_writers.MetricWriter. Not thread-safe.

    Args:
      logdir: an existing local directory.
      not_before: lower bound of the time in the file's name, in seconds since 1970.
    """

    def __init__(self, logdir: str, *, not_before: int = 0):
        seconds = max(int(time.time()), not_before)
        unique = f"{socket.gethostname()}.{os.getpid()}.{next(_file_numbers)}"
        name = f"events.out.tfevents.{seconds:010d}.{unique}"
        self._file = open(os.path.join(logdir, name), "xb")  # noqa: SIM115
        self._records = RecordWriter(self._file)
        self._write(file_version="brain.Event:2")

    def _write(self, **event: Any) -> None:
        event_bytes = event_pb2.Event(wall_time=time.time(), **event).SerializeToString()
        self._records.write(event_bytes)

    def _write_tensor(self, step: int, tag: str, array: np.ndarray, metadata: Any) -> None:
        tensor = tensor_util.make_tensor_proto(array)
        value = summary_pb2.Summary.Value(tag=tag, metadata=metadata, tensor=tensor)
        self._write(step=step, summary=summary_pb2.Summary(value=[value]))

    def restart(self, step: int) -> None:
        """Makes readers discard `step` and later steps of earlier files in the directory."""
        session = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(step=step, session_log=session)

    def write_summaries(
        self, step: int, values: Mapping[str, Any], metadata: Mapping[str, Any] | None = None
    ) -> None:
        for tag, value in values.items():
            self._write_tensor(step, tag, np.asarray(value), (metadata or {}).get(tag))

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        values = []
        for tag, scalar in scalars.items():
            array = np.asarray(scalar)
            if array.size != 1:
                raise ValueError(f"scalar {tag!r} at step {step} has shape {list(array.shape)}")
            values.append(summary_pb2.Summary.Value(tag=tag, simple_value=float(array.reshape(()))))
        self._write(step=step, summary=summary_pb2.Summary(value=values))

    def write_images(self, step: int, images: Mapping[str, Any]) -> None:
        metadata = image_metadata.create_summary_metadata(display_name=None, description=None)
        for tag, image in images.items():
            array = np.asarray(image)
            array = array[None] if array.ndim == 3 else array
            size = [str(array.shape[2]).encode(), str(array.shape[1]).encode()]
            encoded = size + [image_io.png(one) for one in array]
            self._write_tensor(step, tag, np.array(encoded, dtype=object), metadata)

    def write_videos(self, step: int, videos: Mapping[str, Any]) -> None:
        raise NotImplementedError(f"videos are not supported: {', '.join(videos)}")

    def write_audios(self, step: int, audios: Mapping[str, Any], *, sample_rate: int) -> None:
        raise NotImplementedError(f"audio is not supported: {', '.join(audios)}")

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        for tag, text in texts.items():
            self._write(step=step, summary=text_summary.text_pb(tag, text))

    def write_histograms(
        self,
        step: int,
        arrays: Mapping[str, Any],
        num_buckets: Mapping[str, int] | None = None,
    ) -> None:
        """Writes histograms of finite entries, and a scalar with the number of others, if any."""
        metadata = histogram_metadata.create_summary_metadata(display_name=None, description=None)
        for tag, array in arrays.items():
            values = np.asarray(array).astype(np.float64).ravel()
            finite = values[np.isfinite(values)]
            if finite.size < values.size:
                self.write_scalars(step, {f"{tag}/not_finite": values.size - finite.size})
            bins = (num_buckets or {}).get(tag) or _HISTOGRAM_BUCKETS
            counts, edges = np.histogram(finite, bins=bins)
            buckets = np.stack([edges[:-1], edges[1:], counts], axis=1)
            self._write_tensor(step, tag, buckets, metadata)

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        self._write(step=0, summary=hparams_summary.hparams_pb(_flatten(hparams)))

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    """Leaves by dotted path, as types of hparams. Sequences become text: (8, 8, 16) is "8x8x16"."""
    flat: dict[str, bool | int | float | str] = {}
    for key, value in tree.items():
        if hasattr(value, "items"):
            flat |= _flatten(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple):
            numeric = all(isinstance(item, int | float) for item in value)
            flat[prefix + key] = ("x" if numeric else ", ").join(map(str, value))
        elif isinstance(value, bool | int | float | str):
            flat[prefix + key] = value
        else:
            flat[prefix + key] = str(value)
    return flat
