"""The Python API of a trained run: arrays in, arrays out."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from cachetools import LRUCache, cachedmethod
from etils import epath

from functa.data import image_arrays
from functa.data import images as images_lib
from functa.data.functaset.reader import Functaset, open_functaset
from functa.data.functaset.split import FunctasetSplit, FunctasetSplits
from functa.data.image_split import ImageSplit
from functa.diffusion.inpainter import Inpainter
from functa.diffusion.observation import Degradation, Observation, insert_observed
from functa.diffusion.trained_generator import TrainedGenerator
from functa.fields.field import Field
from functa.fields.fitter import Fitter
from functa.pipeline import encode_sources, released
from functa.pipeline import load as load_lib
from functa.pipeline.run_directory import STAGES
from functa.runtime import config as config_lib
from functa.runtime import memory, mesh, rng
from functa.runtime.batching import apply_in_fitting_batches, fitting_batch_size
from functa.training.checkpoint import digest

_DECODE_BYTES = 8  # per pixel and unit: two layers of float32
_DECODE_PIXELS = 1 << 20  # decoded at once; at least one image
_SAMPLE_BATCH = 64
_PAINTED = Degradation("all", 1, 0.0)  # visible pixels are observed unchanged


class TrainedRun:
    """A trained field, with the classifier and the generator that were trained on its latents.

    Every method takes NumPy or JAX arrays and returns NumPy arrays:

      images   [n, h, w, c], or one image [h, w, c]: uint8 in [0, 255] or float in [0, 1]. The channel
               axis of gray images may be missing.
      latents  [n, i, j, d], or those of one image [i, j, d]: float32, not normalized.

    The result for one image or one array of latents has no axis n. Programs are compiled once, for
    batch sizes that are powers of two. All methods raise ValueError for a wrong shape, value or setting,
    and if a stage that they need is not complete or does not fit the field; TypeError for images that
    are neither uint8 nor floating.

    Attributes:
      workdir: directory of the run or of the released model.
      config: its config, an ml_collections.ConfigDict.
      field: the field, a functa.fields.field.Field.
      fitter, params: field and inner loop, and their parameters, on the default device.
      image_shape: (h, w, c) of the images that the field was trained on.
      latent_shape: (i, j, d).
    """

    def __init__(self, workdir: epath.PathLike, *, data_dir: epath.PathLike | None = None):
        self.workdir = released.find_run(workdir)
        self.config = config_lib.load(self.workdir)
        self._data_dir = str(data_dir or self.config.data.data_dir)
        self.fitter, params = load_lib.load_fitter(self.workdir)
        self.params = jax.device_put(mesh.to_host(params))
        self.field = self.fitter.field
        h, w, c = self.field.image_shape
        i, j, d = self.field.latent_shape
        self.image_shape, self.latent_shape = (h, w, c), (i, j, d)
        self._generators: LRUCache = LRUCache(8)
        self._inpainters: LRUCache = LRUCache(2)

    def __repr__(self) -> str:
        h, w, c = self.image_shape
        latents = "x".join(map(str, self.latent_shape))
        return f"TrainedRun({self.config.name}: images {h}x{w}x{c} as latents {latents})"

    @functools.cached_property
    def metrics(self) -> dict[str, dict[str, Any]]:
        """{stage: metrics} of the complete stages; functa/report/metric_registry.py lists the keys."""
        paths = {stage: self.workdir / stage / "metrics.json" for stage in STAGES}
        return {stage: config_lib.read_json(path) for stage, path in paths.items() if path.exists()}

    def images(self, split: str) -> ImageSplit:
        """The images of a split of the run's data set: "train", "validation" or "test".

        Raises DataError if the data set is not there; see functa.load, `data_dir`.
        """
        if split not in self._image_sources:
            raise ValueError(f"no split {split!r}; there are {', '.join(self._image_sources)}")
        return ImageSplit(self._image_sources[split], split, self.image_shape)

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, in the order of the labels; numbers if they have no names."""
        numbers = map(str, range(self.config.data.num_classes))
        return self._functaset.manifest.class_names or list(numbers)

    @functools.cached_property
    def functaset(self) -> FunctasetSplits:
        """The splits of the run's functaset: {"train", "validation", "test"}.

        A released model has no latents. The first use encodes its data set, without augmentation, to a
        directory below XDG_CACHE_HOME.

        Raises DataError if that data set is not there; see functa.load, `data_dir`.
        """
        functaset = open_functaset(self.functaset_directory, field_digest=digest(self.params))
        splits = functaset.manifest.splits
        return FunctasetSplits({name: FunctasetSplit(functaset, name) for name in splits})

    @functools.cached_property
    def functaset_directory(self) -> epath.Path:
        """Directory of `functaset`."""
        if released.is_model(self.workdir):
            return encode_sources.cached_functaset(self, self._data_dir)
        return self.workdir / "functaset"

    @functools.cached_property
    def generator(self) -> TrainedGenerator:
        """The generator, for programs that need more than `sample`, `interpolate` and `inpaint`."""
        return load_lib.load_generator(self.workdir)

    def encode(self, images: Any, *, resize: str | None = None) -> np.ndarray:
        """Fits latents to images.

        Args:
          images: see the class.
          resize: for images of another size than `image_shape`. None refuses them. "crop" cuts out the
            largest centered part of the right aspect ratio and resizes it. "stretch" resizes the whole
            image. Both use an antialiased bicubic filter.
        """
        images, is_single = image_arrays.to_batch(
            images, image_shape=self.image_shape, resize=resize
        )
        encode = functools.partial(_encode, self.fitter, self.params)
        latents = apply_in_fitting_batches(encode, images, limit=self.config.encode.batch_size)
        return latents[0] if is_single else latents

    def decode(self, latents: Any, *, size: tuple[int, int] | None = None) -> np.ndarray:
        """Decodes latents to images at any resolution.

        Args:
          size: (height, width) in pixels; None: that of `image_shape`. Enlarged images show the borders
            of cells if the field has nearest interpolation.
        Returns:
          Images, float32 in [0, 1].
        """
        shape = self.image_shape[:2] if size is None else size
        if np.shape(shape) != (2,) or np.asarray(shape).dtype.kind not in "iu" or min(shape) < 1:
            raise ValueError(f"size={size} must be a height and a width of at least 1 pixel")
        h, w = map(int, shape)
        needed = _DECODE_BYTES * h * w * self.field.width
        if needed > memory.host_bytes():
            raise ValueError(
                f"size={size} needs about {needed / 1e9:.0f} GB of memory for an image"
            )
        latents, is_single = self._latent_batch(latents)
        decode = functools.partial(_decode, self.field, self.params["field"], shape=(h, w))
        images = apply_in_fitting_batches(decode, latents, limit=max(1, _DECODE_PIXELS // (h * w)))
        return images[0] if is_single else images

    def classify(self, latents: Any) -> np.ndarray:
        """Probabilities of the classes: [n, classes] float32, or [classes] for one array of latents."""
        latents, is_single = self._latent_batch(latents)
        if not len(latents):
            return np.zeros((0, self.config.data.num_classes), np.float32)
        probabilities = np.asarray(jax.nn.softmax(self._classifier(latents)))
        return probabilities[0] if is_single else probabilities

    def sample(
        self,
        count: int,
        *,
        labels: int | Sequence[int] | np.ndarray | None = None,
        guidance: float | None = None,
        steps: int | None = None,
        solver: str | None = None,
        seed: int = 0,
    ) -> np.ndarray:
        """Samples latents from the generator.

        Sample k of a seed depends on its label, the seed, k and the settings, not on `count`, up to
        rounding.

        Args:
          count: number of samples.
          labels: one class for all samples, or a class for each. The number of classes stands for an
            unknown class. None: all classes in turn.
          guidance: scale of classifier-free guidance; 1: none.
          steps, solver: of the sampler. None: as in the config.
        Returns:
          Latents [count, i, j, d] float32.
        """
        rng.require_seed(seed)
        chosen = image_arrays.to_labels(labels, count, classes=self.config.data.num_classes)
        return self._sampler(guidance_scale=guidance, steps=steps, solver=solver).sample(
            seed=seed,
            numbers=np.arange(count, dtype=np.int32),
            labels=chosen,
            batch_size=fitting_batch_size(count, _SAMPLE_BATCH),
        )

    def interpolate(
        self,
        first: Any,
        last: Any,
        *,
        count: int = 9,
        labels: tuple[int, int] | None = None,
        guidance: float | None = None,
        steps: int | None = None,
        solver: str | None = None,
    ) -> np.ndarray:
        """Latents along the arc between the noise that leads to two latents.

        The noise is found by running the solver backwards, so both ends return approximately: more
        exactly with more steps and guidance 1.

        Args:
          first, last: latents [i, j, d].
          count: number of latents, both ends included.
          labels: classes of both ends; None: unknown.
          guidance, steps, solver: see `sample`.
        Returns:
          Latents [count, i, j, d] float32.
        """
        ends, _ = self._latent_batch(np.stack([first, last]))
        if count < 2:
            raise ValueError(f"count={count} must be at least 2")
        unknown = self.config.data.num_classes
        classes = image_arrays.to_labels(unknown if labels is None else labels, 2, classes=unknown)
        sampler = self._sampler(guidance_scale=guidance, steps=steps, solver=solver)
        return sampler.interpolate(sampler.invert(ends, classes), classes, count=count)

    def inpaint(
        self,
        images: Any,
        hidden: Any,
        *,
        samples: int = 1,
        steps: int = 20,
        seed: int = 0,
        prior: bool = True,
    ) -> np.ndarray:
        """Fills in hidden pixels by samples of the generator given the visible pixels.

        The generator must have been trained with label dropout.

        Args:
          images: of size `image_shape`; see the class.
          hidden: [h, w] or [n, h, w] bool, True where a pixel is to be filled in.
          samples: number of samples of each image.
          steps: number of noise levels.
          prior: False fits latents to the visible pixels without the generator, as a baseline; then
            there is one result per image.
        Returns:
          [n, samples, h, w, c] float32 in [0, 1], without n for one image. Visible pixels are those of
          `images`.
        """
        rng.require_seed(seed)
        images, is_single = image_arrays.to_batch(images, image_shape=self.image_shape, resize=None)
        hidden = np.asarray(hidden)
        if (
            hidden.dtype != bool
            or hidden.shape not in (images.shape[1:3], images.shape[:3])
            or not hidden.any()
        ):
            raise ValueError(
                f"hidden must be bool{list(images.shape[1:3])} with a True pixel, not "
                f"{hidden.dtype}{list(hidden.shape)}"
            )
        visible = jnp.broadcast_to(~hidden[..., None], images.shape).astype(jnp.float32)
        inpainter, filled = self._inpainter(steps), []
        for number, (mask, image) in enumerate(zip(visible, images, strict=True)):
            observation = Observation(mask[None], mask[None] * image[None])
            if prior:
                # The seed takes the place of the id of the image, so one program serves all seeds.
                ids = np.asarray([seed + number])
                result = inpainter.sample(observation, image_ids=ids, count=samples)[0]
            else:
                result = inpainter.reconstruct_without_prior(observation)
            filled.append(insert_observed(_PAINTED, observation, result))
        return filled[0] if is_single else np.stack(filled)

    def _latent_batch(self, latents: Any) -> tuple[np.ndarray, bool]:
        return image_arrays.to_latent_batch(latents, latent_shape=self.latent_shape)

    @functools.cached_property
    def _image_sources(self) -> dict[str, images_lib.ImageSource]:
        # No cache, because a program reads a few images at a time.
        changes = {"data_dir": self._data_dir, "cache": "none"}
        return images_lib.open_splits(**{**self.config.data, **changes})

    @functools.cached_property
    def _functaset(self) -> Functaset:
        return load_lib.load_functaset(self.workdir, self.params)

    @functools.cached_property
    def _classifier(self) -> Callable[[np.ndarray], np.ndarray]:
        return load_lib.load_classifier(self._functaset, self.workdir)

    @cachedmethod(lambda self: self._generators)
    def _sampler(self, **settings: Any) -> TrainedGenerator:
        """The generator with these settings; its programs are compiled once."""
        return self.generator.with_sampling(**settings)

    @cachedmethod(lambda self: self._inpainters)
    def _inpainter(self, steps: int) -> Inpainter:
        return Inpainter(self.generator, _PAINTED, steps=steps, seed=0)


@functools.partial(jax.jit, static_argnames="fitter")
def _encode(fitter: Fitter, params: Any, images: jax.Array) -> jax.Array:
    return fitter.encode(params, images)[0]


@functools.partial(jax.jit, static_argnames=("field", "shape"))
def _decode(field: Field, params: Any, latents: jax.Array, *, shape: tuple[int, int]) -> jax.Array:
    return jnp.clip(field(params, latents, shape=shape), 0, 1)
