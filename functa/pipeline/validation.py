"""Validation before a run: finds every problem of a config and its data before anything compiles."""

from collections.abc import Callable, Sequence
from concurrent import futures
from typing import Any

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

TRAINING_STAGES = ("meta_learn", "classify", "generate")


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
      stages: that will run; only their batches must divide by the devices.
      first_step: whether to check that the first inner step is stable. It is measured only if the
        config has no other problem, while images are decoded.
      mesh: that batches are sharded over; None: the mesh of this machine.
    """
    problems = _shape_problems(config)
    if problems:
        return problems  # all other checks need the shapes

    def attempt(function: Callable[..., Any], *args) -> None:
        try:
            function(*args)
        except (ValueError, TypeError) as error:
            problems.extend(str(error).splitlines())

    problems += _settings_problems(config, stages)
    problems += _mesh_problems(config, stages, mesh)
    sources: dict[str, ImageSource] = {}
    if open_sources is not None:
        attempt(lambda: sources.update(open_sources()))
    with futures.ThreadPoolExecutor(max_workers=1) as thread:
        unstable = None
        if first_step and not problems:
            unstable = thread.submit(first_step_problems, config)
        attempt(lambda: problems.extend(images_lib.validate_splits(sources)))
        if "generate" in stages and sources and not problems:
            problems += generation_eval.validate_splits(config.generate, sources)
        if sources and not problems:
            problems += _cache_problems(config, sources, stages)
        if unstable is not None and not problems:
            attempt(lambda: problems.extend(unstable.result()))
        return problems


def _shape_problems(config: ConfigDict) -> list[str]:
    shapes = {
        "data.image_shape": config.data.image_shape,
        "field.latent_shape": config.field.latent_shape,
    }
    return [
        f"{name}={shape} must be three whole numbers from 1 to 65535, for example --config.{name}='(8, 8, 3)'"
        for name, shape in shapes.items()
        if len(shape) != 3 or not all(isinstance(n, int) and 0 < n < 1 << 16 for n in shape)
    ]


def _settings_problems(config: ConfigDict, stages: Sequence[str]) -> list[str]:
    problems = builders.validate_meta_learning(config)
    problems += encode.validate(config.encode, image_shape=tuple(config.data.image_shape))
    problems += classification.validate(
        config.classify,
        latent_shape=tuple(config.field.latent_shape),
        num_classes=config.data.num_classes,
    )
    problems += generation.validate(
        config.generate,
        latent_shape=tuple(config.field.latent_shape),
        num_classes=config.data.num_classes,
    )
    problems += generation_eval.validate(
        config.generate, image_shape=tuple(config.data.image_shape)
    )
    ranges: dict[str, tuple[float, float, float]] = {"seed": (config.seed, 0, 2**32 - 1)}
    for stage in _training(stages):
        for name in ("log_every", "eval_every", "checkpoint_every", "steps"):
            ranges[f"{stage}.{name}"] = (config[stage][name], 1, 2**31 - 1)
        ranges[f"{stage}.ema_decay"] = (config[stage].ema_decay, 0, 1 - 1e-9)
    return problems + range_errors(ranges)


def _mesh_problems(
    config: ConfigDict, stages: Sequence[str], mesh: Mesh | AbstractMesh | None
) -> list[str]:
    try:
        return batch_problems(config, mesh or mesh_lib.make_mesh(**config.mesh), stages)
    except ValueError as error:
        return [str(error)]


def batch_problems(
    config: ConfigDict, mesh: Mesh | AbstractMesh, stages: Sequence[str]
) -> list[str]:
    """Batches of the training stages that cannot be sharded over the mesh."""
    problems = []
    for stage in _training(stages):
        parts = config[stage].micro_batches
        if parts < 1:
            problems.append(f"{stage}.micro_batches={parts} must be at least 1")
        for name in ("batch_size", "eval_batch_size"):
            size = config[stage][name]
            by_rows = (stage, name) == ("meta_learn", "batch_size")
            shards = mesh.size // (mesh.shape["cell"] if by_rows else 1)
            unit = "devices" if shards == mesh.size else f"groups of the {mesh.size} devices"
            if name == "batch_size" and parts > 1:
                unit = f"micro-batches ({stage}.micro_batches={parts} on each of {shards} {unit})"
                shards *= parts
            if size < 1 or size % shards:
                problems.append(
                    f"{stage}.{name}={size} must be a positive multiple of the {shards} {unit}"
                )
    return problems


def first_step_problems(config: ConfigDict) -> list[str]:
    """Reports a first inner step of training that overshoots; compiles and measures its curvature."""
    fitter = build_fitter(config)
    key = rng.stream_key(config.seed, "init")
    return fitter.first_step_problems(key, meta_learning.train_field(config.meta_learn, fitter))


def _cache_problems(
    config: ConfigDict, sources: dict[str, ImageSource], stages: Sequence[str]
) -> list[str]:
    """Caches of the functaset that do not fit in memory."""
    layout = RecordLayout(latent_shape=tuple(config.field.latent_shape), dtype=config.encode.dtype)
    problems = []
    for stage in {"classify", "generate"} & set(stages):
        records = {split: source.num_examples for split, source in sources.items()}
        if config[stage].copies == "all":
            records["train"] *= config.encode.num_augmentations
        if problem := memory_problem(records, layout.latent_bytes, cache=config[stage].cache):
            problems.append(f"{stage}.{problem}")
    return sorted(problems)


def _training(stages: Sequence[str]) -> list[str]:
    return [stage for stage in TRAINING_STAGES if stage in stages]
