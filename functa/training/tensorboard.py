"""TensorBoard events of a stage: scalars, images, histograms, settings and grouped charts."""

import math
import re
import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar import metadata as layout_metadata

from functa.runtime import image_io, storage
from functa.training.clu_metric_writers import metric_writers
from functa.training.summary_writer import SummaryWriter

_MIN_IMAGE_SIDE = 64  # pixels; TensorBoard blurs smaller images

# Charts of TensorBoard's "Custom Scalars" tab: {stage: {category: {chart: regular expression}}}. The
# expression matches names of scalars with or without a prefix of their split ("validation_psnr").
_SPEED = {
    "steps per second": r"steps_per_second",
    "examples per second": r"(images|examples)_per_second",
    "memory, bytes": r".*bytes.*",
}
_STEPS = {
    "gradient norm": r"gradient_norm",
    "learning rate": r"learning_rate",
    "update / weight ratio": r".*update_ratio.*",
}
CHARTS: dict[str, dict[str, dict[str, str]]] = {
    "meta_learn": {
        "quality": {"PSNR, dB": r"psnr", "PSNR and baselines, dB": r".*psnr.*"},
        "optimization": {"loss": r"loss", **_STEPS},
        "inner loop": {
            "inner learning rates": r"inner_lrs?[_/](mean|min|max)",
            "learning rates x curvature": r"inner_radius.*",
            "loss before each inner step": r"inner_loss.*",
        },
        "speed": _SPEED,
    },
    "encode": {"quality": {"PSNR, dB": r"psnr"}, "speed": _SPEED},
    "classify": {
        "quality": {"accuracy": r"(top5_)?accuracy", "loss": r"loss"},
        "optimization": _STEPS,
        "speed": _SPEED,
    },
}


def _layout(stage: str) -> layout_pb2.Layout:
    """Layout of the charts of a stage; empty if CHARTS has no such stage."""
    categories = []
    for category, patterns in CHARTS.get(stage, {}).items():
        charts = []
        for title, pattern in patterns.items():
            tag = f"^{stage}/((train|validation|test)[_/])?{pattern}$"
            curves = layout_pb2.MultilineChartContent(tag=[tag])
            charts.append(layout_pb2.Chart(title=title, multiline=curves))
        categories.append(layout_pb2.Category(title=f"{stage}: {category}", chart=charts))
    return layout_pb2.Layout(category=categories)


class Dashboard:
    """Writes the events of one stage in the background. Only one process of a run may have one.

    Names of events start with the stage ("meta_learn/validation_psnr"), so that stages shown together
    have separate charts. A failed write raises an error in a later call, at the latest in `flush` or
    `close`.

    Args:
      directory: local path or gs:// of the event files; created if absent.
      stage: name of the stage.
    """

    def __init__(self, directory: epath.PathLike, *, stage: str):
        self._directory = epath.Path(directory)
        self._directory.mkdir(parents=True, exist_ok=True)
        self._stage = stage
        earlier = [path.name for path in self._directory.glob("events.out.tfevents.*")]
        # Object stores cannot append: write to a local directory, and copy its files at every flush.
        self._remote = storage.is_remote(directory)
        self._local = epath.Path(tempfile.mkdtemp()) if self._remote else self._directory
        self._file = SummaryWriter(str(self._local), not_before=_next_second(earlier))
        if not earlier:
            # Readers take the first restart as the beginning, and discard steps only at later ones.
            self._file.restart(0)
        self._writer = metric_writers.AsyncWriter(self._file)
        layout = _layout(stage)
        if layout.category:
            tag = layout_metadata.CONFIG_SUMMARY_TAG
            content = np.array(layout.SerializeToString(), dtype=object)
            metadata = layout_metadata.create_summary_metadata()
            self._writer.write_summaries(0, {tag: content}, {tag: metadata})

    def resume(self, step: int) -> None:
        """Removes events after `step` from the charts. Must precede events of later steps."""
        self._writer.flush()
        self._file.restart(step + 1)

    def _with_stage(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return {f"{self._stage}/{name}": value for name, value in values.items()}

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """Writes {name: number or array of one element}, which need not be finite."""
        self._writer.write_scalars(step, self._with_stage(values))

    def images(self, step: int, images: Mapping[str, Any]) -> None:
        """Writes {name: [n, h, w, c] float in [0, 1], c 1 or 3}, the n images as one sheet."""
        sheets = {}
        for name, array in images.items():
            array = np.asarray(array)
            factor = math.ceil(_MIN_IMAGE_SIDE / min(array.shape[1:3]))
            sheets[name] = image_io.sheet(image_io.enlarge(array, factor), gap=factor)
        self._writer.write_images(step, self._with_stage(sheets))

    def histograms(self, step: int, arrays: Mapping[str, Any]) -> None:
        """Writes {name: array of any shape}."""
        self._writer.write_histograms(step, self._with_stage(arrays))

    def hparams(self, values: Mapping[str, Any]) -> None:
        """Writes the settings of the run, flat or nested."""
        self._writer.write_hparams(values)

    def flush(self) -> None:
        """Returns when all events are in the file."""
        self._writer.flush()
        if self._remote:
            self._copy()

    def close(self) -> None:
        """Writes all events and closes the file."""
        self._writer.close()
        if self._remote:
            self._copy()
            self._local.rmtree()

    def _copy(self) -> None:
        for path in self._local.iterdir():
            (self._directory / path.name).write_bytes(path.read_bytes())


class NullDashboard:
    """A Dashboard that writes nothing, for all processes but one."""

    def _ignore(self, *args: Any, **kwargs: Any) -> None:
        pass

    resume = scalars = images = histograms = hparams = flush = close = _ignore


def _next_second(names: list[str]) -> int:
    """First second after those in the names of event files.

    Readers sort files by name, which starts with a time. The names of later files must be greater
    even if the clock is not.
    """
    matches = (re.search(r"tfevents\.(\d+)\.", name) for name in names)
    return max((int(match[1]) for match in matches if match), default=-1) + 1
