"""TensorBoard events of a stage: scalars, images, histograms, text, settings, grouped charts."""

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
from functa.training.summary_writer import SummaryWriter, metric_writers

SMALLEST_SIDE = 64  # pixels an image of a sheet is enlarged to: TensorBoard's cards blur small ones

# Categories and charts of TensorBoard's "Custom Scalars" tab, stage by stage. A chart finds its
# curves among the names given to Dashboard.scalars by a regular expression, which is preceded by
# nothing or by the split ("validation_psnr").
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
LAYOUTS: dict[str, dict[str, dict[str, str]]] = {
    "meta_learn": {
        "quality": {"PSNR, dB": r"psnr", "PSNR and baselines, dB": r".*psnr.*"},
        "optimisation": {"loss": r"loss", **_STEPS},
        "inner loop": {
            "inner rates": r"inner_lrs?[_/](mean|min|max)",
            "rates x curvature": r"inner_radius.*",
            "loss before each inner step": r"inner_loss.*",
        },
        "speed": _SPEED,
    },
    "encode": {"quality": {"PSNR, dB": r"psnr"}, "speed": _SPEED},
    "classify": {
        "quality": {"accuracy": r"(top5_)?accuracy", "loss": r"loss"},
        "optimisation": _STEPS,
        "speed": _SPEED,
    },
}


def layout(stage: str) -> layout_pb2.Layout:
    """Grouped charts of a stage; without any for a stage that has no entry in LAYOUTS."""
    categories = []
    for category, patterns in LAYOUTS.get(stage, {}).items():
        charts = []
        for title, pattern in patterns.items():
            tag = f"^{stage}/((train|validation|test)[_/])?{pattern}$"
            curves = layout_pb2.MultilineChartContent(tag=[tag])
            charts.append(layout_pb2.Chart(title=title, multiline=curves))
        categories.append(layout_pb2.Category(title=f"{stage}: {category}", chart=charts))
    return layout_pb2.Layout(category=categories)


class Dashboard:
    """Events of one stage, written in the background, by one process of a run only.

    Names are written below the stage ("meta_learn/validation_psnr"), so that the stages of a run
    shown together keep their own charts. A failed write is raised by a later call, at the latest
    by `flush` or `close`.
    """

    def __init__(self, directory: epath.PathLike, *, stage: str):
        """Opens a new event file in `directory`, a local path or gs://, which is made if absent."""
        self._directory = epath.Path(directory)
        self._directory.mkdir(parents=True, exist_ok=True)
        self._stage = stage
        earlier = [path.name for path in self._directory.glob("events.out.tfevents.*")]
        # Remote file systems cannot append: write beside, and copy at every flush.
        self._remote = storage.is_remote(directory)
        self._local = epath.Path(tempfile.mkdtemp()) if self._remote else self._directory
        self._file = SummaryWriter(str(self._local), not_before=_later_than(earlier))
        self._writer = metric_writers.AsyncWriter(self._file)
        if not earlier:
            self._file.restart(0)  # readers take the first one for a start, only later ones as cuts
        charts = layout(stage)
        if charts.category:
            tag = layout_metadata.CONFIG_SUMMARY_TAG
            content = np.array(charts.SerializeToString(), dtype=object)
            metadata = layout_metadata.create_summary_metadata()
            self._writer.write_summaries(0, {tag: content}, {tag: metadata})

    def resume(self, step: int):
        """The run goes on after `step`: what was written of later steps leaves the charts.

        To be called before anything of a later step is written; step 0 is a run from the start.
        """
        self._file.restart(step + 1)

    def _named(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return {f"{self._stage}/{name}": value for name, value in values.items()}

    def scalars(self, step: int, values: Mapping[str, Any]):
        """values: {name: number or array of one element}; non-finite ones stay as they are."""
        self._writer.write_scalars(step, self._named(values))

    def images(self, step: int, images: Mapping[str, Any]):
        """images: {name: [n, h, w, c] float in [0, 1], c 1 or 3}; the n are shown as one sheet."""
        sheets = {}
        for name, array in images.items():
            array = np.asarray(array)
            factor = math.ceil(SMALLEST_SIDE / min(array.shape[1:3]))
            sheets[name] = image_io.sheet(image_io.enlarge(array, factor), gap=factor)
        self._writer.write_images(step, self._named(sheets))

    def histograms(self, step: int, arrays: Mapping[str, Any]):
        """arrays: {name: array of any shape}; a scalar beside it counts non-finite entries."""
        self._writer.write_histograms(step, self._named(arrays))

    def hparams(self, values: Mapping[str, Any]):
        """values: the configuration, nested as it is."""
        self._writer.write_hparams(values)

    def text(self, step: int, texts: Mapping[str, str]):
        """texts: {name: Markdown}."""
        self._writer.write_texts(step, self._named(texts))

    def flush(self):
        """Returns once everything given so far is in the file."""
        self._writer.flush()
        if self._remote:
            self._copy()

    def close(self):
        """Writes everything and closes the file."""
        self._writer.close()
        if self._remote:
            self._copy()
            self._local.rmtree()

    def _copy(self):
        for path in self._local.iterdir():
            (self._directory / path.name).write_bytes(path.read_bytes())


class NullDashboard:
    """Takes what a Dashboard takes, and writes nothing: for every process but one."""

    def resume(self, step: int):
        pass

    def scalars(self, step: int, values: Mapping[str, Any]):
        pass

    def images(self, step: int, images: Mapping[str, Any]):
        pass

    def histograms(self, step: int, arrays: Mapping[str, Any]):
        pass

    def hparams(self, values: Mapping[str, Any]):
        pass

    def text(self, step: int, texts: Mapping[str, str]):
        pass

    def flush(self):
        pass

    def close(self):
        pass


def _later_than(names: list[str]) -> int:
    """Readers sort event files by name, which begins with the second they were opened in: by whatever clock, the
    next one must come later."""
    seconds = [int(found[1]) for name in names if (found := re.search(r"tfevents\.(\d+)\.", name))]
    return max(seconds, default=-1) + 1
