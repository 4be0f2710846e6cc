"""Builds tasks from a whole config. Only here and in other builders is a config read."""

from collections.abc import Callable
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from functa.data.functaset.reader import Functaset
from functa.data.images import ImageSource
from functa.diffusion.generator import Generator, build_generator
from functa.fields.fitter import Fitter, build_fitter
from functa.training.tasks import Task, classification, generation, meta_learning


def build_meta_learning(
    config: ConfigDict,
    *,
    sources: dict[str, ImageSource],
    fitter: Fitter | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> Task:
    """Builds the task of the stage meta_learn.

    Args:
      sources: splits "train", "validation" and "test"; {} if no batches will be read.
      fitter: of the config, if it has been built.
    Raises:
      ValueError: a setting is impossible; lists all of them.
    """
    problems = meta_learning.validate(config)
    if problems:
        raise ValueError("; ".join(problems))
    return meta_learning.make(
        config.meta_learn,
        fitter=fitter or build_fitter(config),
        sources=sources,
        seed=config.seed,
        row_shards=config.mesh.cell,
        process_index=process_index,
        process_count=process_count,
    )


def build_classification(
    config: ConfigDict,
    functaset: Functaset | Any,
    *,
    process_index: int = 0,
    process_count: int = 1,
) -> Task:
    """Builds the task of the stage classify.

    Raises:
      ValueError: a setting is impossible (lists all of them), or the statistics of the functaset
        cannot normalize.
    """
    shapes: dict[str, Any] = {
        "latent_shape": tuple(config.field.latent_shape),
        "num_classes": config.data.num_classes,
    }
    problems = classification.validate(config.classify, **shapes)
    if problems:
        raise ValueError("; ".join(problems))
    return classification.make(
        config.classify,
        functaset=functaset,
        seed=config.seed,
        process_index=process_index,
        process_count=process_count,
        **shapes,
    )


def build_generation(
    config: ConfigDict,
    functaset: Functaset | Any,
    *,
    decode: Callable[[np.ndarray], np.ndarray],
    generator: Generator | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> Task:
    """Builds the task of the stage generate.

    Args:
      decode: latents [n, i, j, d] -> images [n, h, w, c] in [0, 1], for the dashboard.
      generator: of the config, if it has been built.
    Raises:
      ValueError: a setting is impossible (lists all of them), or the statistics of the functaset
        cannot normalize.
    """
    settings, num_classes = config.generate, config.data.num_classes
    problems = generation.validate(
        settings, latent_shape=tuple(config.field.latent_shape), num_classes=num_classes
    )
    if problems:
        raise ValueError("; ".join(problems))
    return generation.make(
        settings,
        generator=generator or build_generator(settings, functaset, num_classes=num_classes),
        functaset=functaset,
        decode=decode,
        seed=config.seed,
        process_index=process_index,
        process_count=process_count,
    )
