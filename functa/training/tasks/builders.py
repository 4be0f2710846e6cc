"""Builds tasks from a whole config. Only here and in other builders is a config read."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from functa.data import loader
from functa.data.functaset.batches import LatentBatches
from functa.data.functaset.reader import Functaset
from functa.data.images import ImageSource
from functa.diffusion.generator import Generator, build_generator
from functa.fields.fitter import Fitter, build_field, build_fitter
from functa.fields.inner_loop import InnerLoop
from functa.fields.psnr import psnr
from functa.models.classifier import make_classifier
from functa.models.normalization import make_normalization
from functa.runtime import mesh
from functa.training.tasks import (
    Task,
    TaskData,
    TaskMetrics,
    classification,
    generation,
    meta_learning,
)


def build_meta_learning(
    config: ConfigDict,
    *,
    sources: dict[str, ImageSource],
    fitter: Fitter | None = None,
    process_index: int = 0,
    process_count: int = 1,
    devices: int = 1,
) -> Task:
    """Builds the task of the stage meta_learn.

    Its params are those of Fitter. Batches: {"image": uint8 [b, h, w, c], ...}. Nothing is compiled
    and no data is read here.

    Args:
      sources: splits "train", "validation" and "test"; {} if no batches will be read.
      fitter: of the config, if it has been built.
      devices: of all processes.
    Raises:
      ValueError: a setting is impossible; lists all of them.
    """
    _require(validate_meta_learning(config))
    settings = config.meta_learn
    fitter = fitter or build_fitter(config)
    field = meta_learning.train_field(settings, fitter)
    local = meta_learning.local_field(settings, fitter, config.mesh.cell)
    i, j, _ = fitter.field.latent_shape
    image_part = settings.cells_per_image / (i * j) if settings.cells_per_image else 1.0
    loop = fitter.inner_loop
    return Task(
        name="meta_learn",
        init=functools.partial(fitter.init, train_field=field),
        sample_inputs=functools.partial(meta_learning.draw, settings, fitter.field),
        loss=functools.partial(meta_learning.loss, settings, loop, local),
        optimizer=meta_learning.make_optimizer(settings).followed_by(
            meta_learning.clip_inner_lrs(loop.min_lr, loop.max_lr)
        ),
        data=_image_data(
            settings,
            sources,
            config.seed,
            devices,
            sharing=1 if local is field else config.mesh.cell,
            images_per_step=settings.batch_size * image_part,
            process_index=process_index,
            process_count=process_count,
        ),
        metrics=TaskMetrics(
            functools.partial(meta_learning.evaluate, fitter), meta_learning.summarize, score="psnr"
        ),
        finalize_logs=lambda logs: (
            logs | {"psnr_of_mean_mse": psnr(logs[f"inner_loss_{loop.steps}"])}
        ),
        headline=functools.partial(meta_learning.headline, settings),
        monitor=meta_learning.make_monitor(field),
        illustrate=functools.partial(
            meta_learning.illustrate, jax.jit(fitter.fit), sources.get("validation")
        ),
        batch_spec=mesh.BY_EXAMPLE if local is field else mesh.BY_ROWS,
    )


def validate_meta_learning(config: ConfigDict) -> list[str]:
    """Problems of config.field, config.inner_loop and config.meta_learn, one line each."""
    problems: list[str] = []

    def attempt(build: Callable[[], Any]) -> Any:
        try:
            return build()
        except (ValueError, TypeError) as error:
            message = str(error).replace("optimizer.", "meta_learn.optimizer.")
            problems.extend(message.splitlines())

    settings = config.meta_learn
    field = attempt(lambda: build_field(config))
    loop = attempt(lambda: InnerLoop(**config.inner_loop))
    attempt(lambda: meta_learning.make_optimizer(settings))
    problems += meta_learning.validate_settings(settings, tuple(config.field.latent_shape))
    if not problems:
        fitter = attempt(lambda: Fitter(field=field, inner_loop=loop))
        attempt(lambda: meta_learning.local_field(settings, fitter, config.mesh.cell))
    return problems


def build_classification(
    config: ConfigDict,
    functaset: Functaset | Any,
    *,
    process_index: int = 0,
    process_count: int = 1,
    devices: int = 1,
) -> Task:
    """Builds the task of the stage classify.

    Args:
      devices: of all processes.
    Raises:
      ValueError: a setting is impossible (lists all of them), or the statistics of the functaset
        cannot normalize.
    """
    settings, num_classes = config.classify, config.data.num_classes
    latent_shape = tuple(config.field.latent_shape)
    _require(classification.validate(settings, latent_shape=latent_shape, num_classes=num_classes))
    module = make_classifier(num_classes=num_classes, **settings.model)
    normalize = make_normalization(functaset, kind=settings.normalization).normalize
    augment = classification.make_augment(settings, latent_shape)
    return Task(
        name="classify",
        init=classification.make_init(module, latent_shape=latent_shape),
        sample_inputs=classification.make_draw(
            normalize, augment, num_classes=num_classes, mixup=settings.mixup
        ),
        loss=classification.make_loss(module, label_smoothing=settings.label_smoothing),
        optimizer=classification.make_optimizer(settings),
        data=_latent_data(
            settings,
            functaset,
            config.seed,
            devices,
            process_index=process_index,
            process_count=process_count,
        ),
        metrics=TaskMetrics(
            classification.make_evaluate(module, normalize),
            classification.summarize,
            score="accuracy",
        ),
        illustrate=classification.make_illustrate(
            module, normalize, source=lambda: functaset.source("validation")
        ),
        shard_params=True,
    )


def build_generation(
    config: ConfigDict,
    functaset: Functaset | Any,
    *,
    decode: Callable[[np.ndarray], np.ndarray],
    generator: Generator | None = None,
    process_index: int = 0,
    process_count: int = 1,
    devices: int = 1,
) -> Task:
    """Builds the task of the stage generate.

    Args:
      decode: latents [n, i, j, d] -> images [n, h, w, c] in [0, 1], for the dashboard.
      generator: of the config, if it has been built.
      devices: of all processes.
    Raises:
      ValueError: a setting is impossible (lists all of them), or the statistics of the functaset
        cannot normalize.
    """
    settings, num_classes = config.generate, config.data.num_classes
    latent_shape = tuple(config.field.latent_shape)
    _require(generation.validate(settings, latent_shape=latent_shape, num_classes=num_classes))
    generator = generator or build_generator(settings, functaset, num_classes=num_classes)
    return Task(
        name="generate",
        init=generator.init,
        sample_inputs=generation.make_sample_inputs(generator),
        loss=generation.make_loss(generator),
        optimizer=generation.make_optimizer(settings),
        data=_latent_data(
            settings,
            functaset,
            config.seed,
            devices,
            process_index=process_index,
            process_count=process_count,
        ),
        metrics=TaskMetrics(generation.make_evaluate(generator), generation.summarize, score="r2"),
        illustrate=generation.make_illustrate(generator, decode, seed=config.seed),
        shard_params=True,
    )


def _require(problems: list[str]) -> None:
    if problems:
        raise ValueError("; ".join(problems))


def _batch_sizes(settings: ConfigDict, devices: int, *, sharing: int = 1) -> tuple[int, int]:
    """Repeats of a training example, and size of an evaluation batch; see mesh.batch_repeats."""
    repeats = mesh.batch_repeats(
        settings.batch_size,
        devices=devices,
        micro_batches=settings.micro_batches,
        sharing=sharing,
    )
    return repeats, mesh.padded_batch(settings.eval_batch_size, devices)


def _image_data(
    settings: ConfigDict,
    sources: dict[str, ImageSource],
    seed: int,
    devices: int,
    *,
    sharing: int,
    images_per_step: float,
    **processes: int,
) -> TaskData:
    """Batches of images with the settings of the stage meta_learn.

    Args:
      sharing: devices that share every image.
    """
    repeats, eval_batch_size = _batch_sizes(settings, devices, sharing=sharing)
    return TaskData(
        train_batches=lambda first, last: loader.train_batches(
            sources["train"],
            batch_size=settings.batch_size,
            first_step=first,
            last_step=last,
            seed=seed,
            repeats=repeats,
            **processes,
        ),
        eval_batches=lambda split: loader.eval_batches(
            sources[split], batch_size=eval_batch_size, **processes
        ),
        images_per_step=images_per_step,
    )


def _latent_data(
    settings: ConfigDict, functaset: Functaset, seed: int, devices: int, **processes: int
) -> TaskData:
    """Batches of latents with the settings of a stage."""
    batches = LatentBatches(functaset, cache=settings.cache, copies=settings.copies, **processes)
    repeats, eval_batch_size = _batch_sizes(settings, devices)
    return TaskData(
        train_batches=lambda first, last: batches.train(
            batch_size=settings.batch_size,
            first_step=first,
            last_step=last,
            seed=seed,
            repeats=repeats,
        ),
        eval_batches=lambda split: batches.whole(split, batch_size=eval_batch_size),
        images_per_step=settings.batch_size,
    )
