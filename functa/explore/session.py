"""What the explore page shows of a run: examples of its functaset, pictures, samples.

One thread at a time may call a session.
"""

from typing import Any, NamedTuple

import jax
import numpy as np
from cachetools import LRUCache, cachedmethod
from etils import epath

from functa.data.augmentation import read_copies
from functa.fields.pixels import to_float
from functa.fields.psnr import psnr, psnr_of_images
from functa.pipeline.trained_run import TrainedRun
from functa.runtime.errors import DataError

_AUGMENTATION = ("flip", "crop", "crop_padding", "crop_min_area")  # keys of config.encode
_MAX_SCALE, _MAX_SIDE = 16, 512  # 512 x 512 pixels take about 1 GiB at width 256
_SEARCHED = 8192  # records read for one page of a class


class Sampling(NamedTuple):
    """Settings of the diffusion solver."""

    guidance: float
    steps: int
    solver: str


class Example(NamedTuple):
    """A record of the functaset, a picture, or a sample of the generator.

    Attributes:
      latents: [i, j, d] float32.
      label: class; num_classes stands for any class.
      caption: one line.
      original: [h, w, c] uint8; None for a sample, or if the images are missing.
    """

    latents: np.ndarray
    label: int
    caption: str
    original: np.ndarray | None = None


class Session:
    """A loaded run.

    Attributes:
      run: the run.
      splits: number of records of each split that is not empty.
      num_classes, max_scale: number of classes; largest scale at which images may be decoded.
      functaset_problem: why a released model has no functaset; "" if it has.
      images_problem, generator_problem: why there are no images, no generator; "" if there are.
    """

    def __init__(self, workdir: epath.PathLike, *, data_dir: str | None):
        """Loads field and functaset, and images and generator if they exist.

        Args:
          data_dir: replaces config.data.data_dir.
        Raises:
          ValueError: no run, no field, or a run without functaset or with that of another field.
        """
        self.run = TrainedRun(workdir, data_dir=data_dir)
        self.splits, self.functaset_problem = {}, ""
        try:
            functaset = self.run.functaset.items()
            self.splits = {name: len(split) for name, split in functaset if len(split)}
        except DataError as error:  # a released model whose data set is not prepared
            self.functaset_problem = f"There are no records to browse: {error}"
        self.num_classes = int(self.run.config.data.num_classes)
        self.max_scale = min(_MAX_SCALE, max(2, _MAX_SIDE // max(self.run.image_shape[:2])))
        self.images_problem = self.generator_problem = ""
        self._samples: LRUCache = LRUCache(4)
        try:
            self.run.images("test")
        except (ValueError, OSError) as error:
            self.images_problem = f"The images are missing: {error}"
        try:
            _ = self.run.generator
        except ValueError as error:  # not trained, damaged, or of another functaset
            self.generator_problem = f"There is no generator: {error}"

    def class_name(self, label: int) -> str:
        """Name of a class in a caption."""
        if not 0 <= label < self.num_classes:
            return "any class"
        name = self.run.class_names[label]
        return f"class {name}" if name.isdigit() else name

    def browse(
        self, split: str, *, start: int, count: int, label: int | None
    ) -> tuple[list[Example], int | None]:
        """Reads up to `count` records from row `start` on, of one class or (label=None) of all.

        Returns:
          (examples, the next `start` or None at the end of the split). Examples are missing beyond
          the end, or if none of the next 8,192 records is of the class.
        """
        total = self.splits[split]
        rows = np.arange(start, min(start + (_SEARCHED if label is not None else count), total))
        following = start + len(rows)
        if label is not None and len(rows):
            rows = rows[self.run.functaset[split][rows]["label"] == label]
        if len(rows) > count:
            following = int(rows[count])
        examples = self.examples(split, rows[:count]) if len(rows) else []
        return examples, following if following < total else None

    def examples(self, split: str, rows: np.ndarray) -> list[Example]:
        """Records at `rows` [n] of a split, n > 0, with the images they were encoded from."""
        records = self.run.functaset[split][rows]
        originals: Any = [None] * len(rows)
        if not self.images_problem:
            try:
                originals = self._read_originals(split, records)
            except (IndexError, ValueError) as error:
                self.images_problem = f"The images do not belong to the functaset: {error}"
        examples = []
        for k, latents in enumerate(records["latents"]):
            label = int(records["label"][k])
            label = label if label >= 0 else self.num_classes
            copy = f", copy {records['copy'][k]}" if records["copy"][k] else ""
            name = f"{self.class_name(label)}, {records['psnr'][k]:.1f} dB, {split} {rows[k]}{copy}"
            examples.append(Example(latents, label, name, originals[k]))
        return examples

    def _read_originals(self, split: str, records: dict[str, np.ndarray]) -> np.ndarray:
        """Images [n, h, w, c] uint8 of n records, augmented as they were for encoding."""
        source, config = self.run.images(split).source, self.run.config
        rows = records["id"] - source.read(np.arange(1))["id"]
        settings = {key: config.encode[key] for key in _AUGMENTATION}
        batch = read_copies(source, rows, records["copy"], seed=config.seed, **settings)
        if np.any(batch["label"] != records["label"]):
            raise ValueError(f"images and records of the split {split} have different classes")
        return batch["image"]

    def encode(self, image: np.ndarray, *, name: str) -> Example:
        """Encodes a picture [h, w, c] uint8 of the size of the run's images."""
        latents = self.run.encode(image)
        decibel = psnr_of_images(self.run.decode(latents), image)
        return Example(latents, self.num_classes, f"{name}, {decibel:.1f} dB", image)

    def decode(self, latents: np.ndarray, *, scale: int) -> np.ndarray:
        """Decodes latents [n, i, j, d] to images [n, scale h, scale w, c] float32 in [0, 1]."""
        h, w, _ = self.run.image_shape
        return self.run.decode(latents, size=(scale * h, scale * w))

    def enlarge(self, example: Example, *, scale: int) -> np.ndarray:
        """Bicubic enlargement of the original or, without one, of the image decoded at scale 1.

        Returns: [scale h, scale w, c] float32 in [0, 1].
        """
        if example.original is None:
            image = self.run.decode(example.latents)
        else:
            image = to_float(example.original)
        h, w, c = image.shape
        return np.clip(jax.image.resize(image, (scale * h, scale * w, c), "cubic"), 0, 1)

    def sample(self, labels: list[int], sampling: Sampling, *, seed: int) -> list[Example]:
        """Samples 0 to n - 1 of a seed; labels [n]. A sample does not depend on the others.

        Raises:
          ValueError: the generator cannot sample with these settings.
        """
        latents = self._sample(tuple(labels), sampling, seed)
        names = [f"{self.class_name(label)}, sample {k}" for k, label in enumerate(labels)]
        return list(map(Example, latents, labels, names))

    def interpolate(
        self, first: Example, last: Example, sampling: Sampling, *, count: int
    ) -> np.ndarray:
        """Latents [count, i, j, d] between two examples; see TrainedRun.interpolate."""
        labels = first.label, last.label
        return self.run.interpolate(
            first.latents, last.latents, count=count, labels=labels, **sampling._asdict()
        )

    def inpaint(
        self, image: np.ndarray, hidden: np.ndarray, *, samples: int, steps: int, seed: int
    ) -> dict[str, tuple[np.ndarray, float]]:
        """Fills in hidden pixels by posterior samples, and without a prior by fitting latents.

        Args:
          image: [h, w, c] uint8; hidden: [h, w] bool.
          samples: number of posterior samples; steps: noise levels; seed: of the samples.
        Returns:
          {caption: (image [h, w, c] float32 in [0, 1], PSNR over the hidden pixels in dB)}.
        Raises:
          ValueError: no pixel is hidden, or the generator does not know images of any class.
        """
        if not hidden.any():
            raise ValueError("no pixel is hidden: paint over a part of the image first")
        drawn = self.run.inpaint(image, hidden, samples=samples, steps=steps, seed=seed)
        results = {"without prior": self.run.inpaint(image, hidden, steps=steps, prior=False)[0]}
        results |= {"mean of samples": drawn.mean(0)}
        results |= {f"sample {k + 1}": each for k, each in enumerate(drawn)}
        target = to_float(image)[hidden]
        return {
            name: (result, float(psnr(np.mean(np.square(result[hidden] - target)))))
            for name, result in results.items()
        }

    @cachedmethod(lambda self: self._samples)
    def _sample(self, labels: tuple[int, ...], sampling: Sampling, seed: int) -> np.ndarray:
        """Latents [n, i, j, d] float32 of the samples 0 to n - 1."""
        return self.run.sample(len(labels), labels=labels, seed=seed, **sampling._asdict())
