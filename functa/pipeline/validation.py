"""Validation before a run: finds every problem of a config and its data before anything compiles."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures

from jax.sharding import AbstractMesh, Mesh
from ml_collections import ConfigDict

from functa.data import images as images_lib
from functa.data.functaset.batches import memory_problem
from functa.data.functaset.format import RecordLayout
from functa.data.images import ImageSource
from functa.evaluation import generation_eval
from functa.fields.fitter import build_fitter
from functa.pipeline import encode
from functa.runtime import mesh as mesh_lib
from functa.runtime import rng
from functa.runtime.config import range_errors
from functa.training.tasks import builders, classification, generation, meta_learning

_TRAINING_STAGES = ("meta_learn", "classify", "generate")
_TRAINING_NUMBERS = (
    *("batch_size", "eval_batch_size", "micro_batches", "steps"),
    *("log_every", "eval_every", "checkpoint_every"),
)


def validate(
    config: ConfigDict,
    open_sources: Callable[[], dict[str, ImageSource]] | None,
    *,
    stages: Sequence[str],
    first_step: bool = False,
    mesh: Mesh | AbstractMesh | None = None,
) -> list[str]:
    """All problems of a config and its data, one line each.

    Args:
      open_sources: opens the splits of config.data; its ValueErrors are problems. None: no images are
        read.
      stages: that will run; the others' settings are not all checked.
      first_step: whether to check that the first inner step is stable. It is measured only if the
        config has no other problem, while images are decoded.
      mesh: of the devices; None: that of this machine.
    """
    problems = _shape_problems(
        {
            "data.image_shape": config.data.image_shape,
            "field.latent_shape": config.field.latent_shape,
        }
    )
    if problems:
        return problems  # all other checks need the shapes
    problems = _settings_problems(config)
    sources: dict[str, ImageSource] = {}
    with _collect_errors(problems):
        mesh = mesh or mesh_lib.make_mesh(**config.mesh)
        for stage in _TRAINING_STAGES:
            if stage in stages:
                problems += _training_problems(stage, config[stage])
    with _collect_errors(problems):
        sources = _open_splits(open_sources) if open_sources else {}
    with futures.ThreadPoolExecutor(max_workers=1) as thread:
        unstable = None
        if first_step and not problems:
            unstable = thread.submit(first_step_problems, config)
        with _collect_errors(problems):
            problems += images_lib.validate_splits(sources)
        if sources and not problems:
            problems += _functaset_problems(config, sources, stages)
        if unstable is not None and not problems:
            with _collect_errors(problems):
                problems += unstable.result()
        return problems


def _open_splits(open_sources: Callable[[], dict[str, ImageSource]]) -> dict[str, ImageSource]:
    sources = open_sources()
    for split, source in sources.items():
        if not source.num_examples:
            raise ValueError(f"the {split} split has no images: see config.data.{split}_split")
    return sources


@contextlib.contextmanager
def _collect_errors(problems: list[str]) -> Iterator[None]:
    """Appends the lines of an error of the body to `problems`."""
    try:
        yield
    except (ValueError, TypeError) as error:
        problems.extend(str(error).splitlines())


def _shape_problems(shapes: dict[str, Sequence[int]]) -> list[str]:
    return [
        f"{name}={shape} must be three whole numbers from 1 to 65535, for example --config.{name}='(8, 8, 3)'"
        for name, shape in shapes.items()
        if len(shape) != 3 or not all(isinstance(n, int) and 0 < n < 1 << 16 for n in shape)
    ]


def _settings_problems(config: ConfigDict) -> list[str]:
    image_shape, latent_shape = tuple(config.data.image_shape), tuple(config.field.latent_shape)
    labels = {"latent_shape": latent_shape, "num_classes": config.data.num_classes}
    return [
        *builders.validate_meta_learning(config),
        *encode.validate(config.encode, image_shape=image_shape),
        *classification.validate(config.classify, **labels),
        *generation.validate(config.generate, **labels),
        *generation_eval.validate(config.generate, image_shape=image_shape),
        *range_errors({"seed": (config.seed, 0, 2**32 - 1)}),
    ]


def _training_problems(stage: str, settings: ConfigDict) -> list[str]:
    """Problems of the settings of the training loop."""
    ranges: dict[str, tuple[float, float, float]] = {
        f"{stage}.{name}": (settings[name], 1, 2**31 - 1) for name in _TRAINING_NUMBERS
    }
    ranges[f"{stage}.ema_decay"] = (settings.ema_decay, 0, 1 - 1e-9)
    return range_errors(ranges)


def first_step_problems(config: ConfigDict) -> list[str]:
    """Reports a first inner step of training that overshoots; compiles and measures its curvature."""
    fitter = build_fitter(config)
    key = rng.stream_key(config.seed, "init")
    return fitter.first_step_problems(key, meta_learning.train_field(config.meta_learn, fitter))


def _functaset_problems(
    config: ConfigDict, sources: dict[str, ImageSource], stages: Sequence[str]
) -> list[str]:
    """Images that cannot be evaluated, and caches of the functaset that do not fit in memory."""
    problems = []
    if "generate" in stages:
        problems += generation_eval.validate_splits(config.generate, sources)
    layout = RecordLayout(latent_shape=tuple(config.field.latent_shape), dtype=config.encode.dtype)
    for stage in ("classify", "generate"):
        records = {split: source.num_examples for split, source in sources.items()}
        if config[stage].copies == "all":
            records["train"] *= config.encode.num_augmentations
        problem = memory_problem(records, layout.latent_bytes, cache=config[stage].cache)
        if stage in stages and problem:
            problems.append(f"{stage}.{problem}")
    return problems
