"""Everything a person can get wrong in a config or its data, found before anything compiles."""

from collections.abc import Callable, Sequence
from concurrent import futures
from typing import Any

from jax.sharding import AbstractMesh, Mesh
from ml_collections import ConfigDict

from functa.data import images
from functa.data.functaset.batches import no_room
from functa.data.functaset.format import RecordLayout
from functa.data.images import ImageSource
from functa.evaluation import generation_eval
from functa.fields import builders
from functa.pipeline import encode
from functa.runtime import mesh as mesh_lib
from functa.runtime.config import range_errors
from functa.training.tasks import classification, generation, meta_learning


def check(
    config: ConfigDict,
    open_sources: Callable[[], dict[str, ImageSource]] | None,
    *,
    stages: Sequence[str],
    first_step: bool = False,
    mesh: Mesh | AbstractMesh | None = None,
) -> list[str]:
    """All problems of a config and its data, one line each; [] if there is none.

    Args:
      open_sources: opens the splits of config.data; what it raises as ValueError is a problem.
        None: no image will be read.
      stages: that will run; only their batches must divide by the devices.
      first_step: whether the first inner step will be taken, so that it must be stable. It is measured
        where the config is in order, while images are decoded, and told where all else is.
      mesh: that batches are shared out on; None: that of this machine.
    """
    problems = shapes(config)
    if problems:
        return problems  # everything else is measured by them

    def attempt(function: Callable[..., Any], *args) -> None:
        try:
            function(*args)
        except (ValueError, TypeError) as error:
            problems.extend(str(error).splitlines())

    problems += meta_learning.check(config)
    attempt(encode.check, config)
    problems += classification.check(config)
    problems += generation.check(config)
    problems += generation_eval.check(config)
    problems += range_errors({"seed": (config.seed, 0, 2**32 - 1)})
    problems += _numbers(config, stages, mesh)
    sources: dict[str, ImageSource] = {}
    if open_sources is not None:
        attempt(lambda: sources.update(open_sources()))
    with futures.ThreadPoolExecutor(max_workers=1) as thread:
        unstable = None
        if first_step and not problems:
            unstable = thread.submit(builders.check_first_step, config)
        attempt(lambda: problems.extend(images.check_splits(sources)))
        if "generate" in stages and sources and not problems:
            problems += generation_eval.check_splits(config, sources)
        if sources and not problems:
            problems += _caches(config, sources, stages)
        if unstable is not None and not problems:
            attempt(lambda: problems.extend(unstable.result()))
        return problems


def shapes(config: ConfigDict) -> list[str]:
    """Of images and latents, by which everything else is measured; [] if they are three whole numbers each."""
    found = {
        "data.image_shape": config.data.image_shape,
        "field.latent_shape": config.field.latent_shape,
    }
    return [
        f"{name}={shape}: want three whole numbers from 1 to 65535, as in --config.{name}='(8, 8, 3)'"
        for name, shape in found.items()
        if len(shape) != 3 or not all(isinstance(n, int) and 0 < n < 1 << 16 for n in shape)
    ]


def _numbers(
    config: ConfigDict, stages: Sequence[str], mesh: Mesh | AbstractMesh | None
) -> list[str]:
    """Of devices, batches and steps."""
    try:
        problems = batches(config, mesh or mesh_lib.make_mesh(**config.mesh), stages)
    except ValueError as error:
        problems = [str(error)]
    for stage in _trained(stages):
        for name in ("log_every", "eval_every", "checkpoint_every", "steps"):
            if config[stage][name] < 1:
                problems.append(f"{stage}.{name}={config[stage][name]} must be at least 1")
        if not 0 <= config[stage].ema_decay < 1:
            problems.append(f"{stage}.ema_decay={config[stage].ema_decay} must be in [0, 1)")
    return problems


def batches(config: ConfigDict, mesh: Mesh | AbstractMesh, stages: Sequence[str]) -> list[str]:
    """Batches that cannot be shared out; [] if there is none."""
    problems = []
    for stage in _trained(stages):
        parts = config[stage].micro_batches
        if parts < 1:
            problems.append(f"{stage}.micro_batches={parts} must be at least 1")
        for name in ("batch_size", "eval_batch_size"):
            size = config[stage][name]
            by_rows = (stage, name) == ("meta_learn", "batch_size")
            shares = mesh.size // (mesh.shape["cell"] if by_rows else 1)
            of = "devices" if shares == mesh.size else f"shares of {mesh.size} devices"
            if name == "batch_size" and parts > 1:
                of = f"parts: {shares} {of}, {stage}.micro_batches={parts} each"
                shares *= parts
            if size < 1 or size % shares:
                problems.append(
                    f"{stage}.{name}={size} must be a positive multiple of the {shares} {of}"
                )
    return problems


def _caches(
    config: ConfigDict, sources: dict[str, ImageSource], stages: Sequence[str]
) -> list[str]:
    """Of the functaset that these images will be, where memory has no room for it."""
    layout = RecordLayout(latent_shape=tuple(config.field.latent_shape), dtype=config.encode.dtype)
    problems = []
    for stage in {"classify", "generate"} & set(stages):
        records = {split: source.num_examples for split, source in sources.items()}
        if config[stage].copies == "all":
            records["train"] *= config.encode.num_augmentations
        if found := no_room(records, layout.latent_bytes, cache=config[stage].cache):
            problems.append(f"{stage}.{found}")
    return sorted(problems)


def _trained(stages: Sequence[str]) -> list[str]:
    return [stage for stage in ("meta_learn", "classify", "generate") if stage in stages]
