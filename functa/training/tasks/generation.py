"""The generate stage: a diffusion model of the latents of a functaset.

Source: Karras et al. 2022 and rectified flow, see functa/diffusion.py; on functa, Dupont et al. 2022, section 5.3,
and Bauer et al. 2023, section 4.2.
"""

from collections.abc import Callable
from typing import Any, cast

import flax
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from functa.data.functaset import reader
from functa.data.functaset.batches import CACHES, COPIES, LatentBatches
from functa.data.functaset.format import float32_latents
from functa.diffusion import parameterization, solvers
from functa.diffusion.parameterization import Denoise, Frame
from functa.evaluation import generative_metrics
from functa.models import classifier, denoiser
from functa.models.normalization import KINDS, Normalization, make_normalization
from functa.runtime import rng
from functa.runtime.config import range_errors
from functa.training import optimizers
from functa.training.tasks import Illustrations, PyTree, Task, TaskData, TaskMetrics

_SHOWN = 16  # samples for the dashboard
_LEVELS = 8  # noise levels that an evaluation goes over


def make(
    config: ConfigDict,
    functaset: reader.Functaset,
    *,
    decode: Callable[[np.ndarray], np.ndarray],
    process_index: int,
    process_count: int,
) -> Task:
    """The task of training `config.generate.model` on `functaset`.

    Args:
      decode: latents [n, i, j, d] -> images [n, h, w, c] in [0, 1], for the dashboard.
    Raises:
      ValueError: impossible values in `config.generate` (all of them, see `check`), or a functaset
        whose statistics cannot normalise.
    """
    problems = check(config)
    if problems:
        raise ValueError("; ".join(problems))
    settings = config.generate
    frame, module = make_frame(config), make_model(config)
    normalization = make_normalization(functaset, kind=settings.normalization)
    batches = LatentBatches(
        functaset,
        cache=settings.cache,
        copies=settings.copies,
        process_index=process_index,
        process_count=process_count,
    )
    return Task(
        name="generate",
        init=make_init(module, latent_shape=tuple(config.field.latent_shape)),
        sample_inputs=make_draw(
            frame,
            normalization,
            null_class=config.data.num_classes,
            label_dropout=settings.label_dropout,
        ),
        loss=make_loss(frame, module),
        optimizer=make_optimizer(config),
        data=TaskData(
            train_batches=lambda first, last: batches.train(
                batch_size=settings.batch_size, first_step=first, last_step=last, seed=config.seed
            ),
            eval_batches=lambda split: batches.whole(split, batch_size=settings.eval_batch_size),
            images_per_step=settings.batch_size,
        ),
        metrics=TaskMetrics(
            make_evaluate(frame, module, normalization), summarize, score="explained"
        ),
        illustrate=make_illustrate(config, make_sampler(config, normalization), decode),
        shard_params=True,
    )


def check(config: ConfigDict) -> list[str]:
    """Every impossible value in `config.generate`, each with its number; [] if there is none."""
    settings = config.generate
    problems: list[str] = []

    def attempt(part: str, function: Callable[[], Any]) -> None:
        try:
            function()
        except (TypeError, ValueError, flax.errors.FlaxError) as error:
            problems.append(f"generate.{part}: {error}")

    def shapes():
        init = make_init(make_model(config), latent_shape=tuple(config.field.latent_shape))
        jax.eval_shape(init, jax.random.key(0))

    attempt("model", shapes)
    attempt("frame", lambda: make_frame(config))
    attempt("schedule", lambda: solvers.make_schedule(**settings.schedule))
    attempt("solver", lambda: solvers.make_solver(**settings.solver))
    attempt("guidance", lambda: guided(config, lambda *args: args[0]))
    try:
        make_optimizer(config)
    except (TypeError, ValueError) as error:
        problems += str(error).replace("optimizer.", "generate.optimizer.").splitlines()
    if settings.normalization not in KINDS:
        problems.append(f"generate.normalization={settings.normalization!r}: {', '.join(KINDS)}")
    if settings.cache not in CACHES:
        problems.append(f"generate.cache={settings.cache!r}: {', '.join(CACHES)}")
    if settings.copies not in COPIES:
        problems.append(f"generate.copies={settings.copies!r}: {', '.join(COPIES)}")
    swept = {f"generate.sweep[{k}]": scale for k, scale in enumerate(settings.sweep)}
    words = [key for key, scale in swept.items() if not isinstance(scale, int | float)]
    if words or len(set(settings.sweep)) < len(settings.sweep):
        problems.append(f"generate.sweep={tuple(settings.sweep)!r}: different numbers, or none")
        swept = {}
    problems += range_errors({key: (scale, 0.0, 1e3) for key, scale in swept.items()})
    for key, scale in {"generate.guidance.scale": settings.guidance.scale, **swept}.items():
        if scale != 1 and settings.label_dropout == 0:
            problems.append(
                f"{key}={scale:g} wants a model that knows images of any class: set generate.label_dropout above 0, "
                "or the scale to 1"
            )
    return problems + range_errors(
        {
            "generate.label_dropout": (settings.label_dropout, 0.0, 1.0),
            "generate.samples": (settings.samples, generative_metrics.MIN_IMAGES, 10**9),
            "generate.sample_batch_size": (settings.sample_batch_size, 1, 10**6),
        }
    )


def make_optimizer(config: ConfigDict) -> optimizers.Optimizer:
    settings = config.generate
    return optimizers.make(
        **settings.optimizer, steps=settings.steps, decay_mask=classifier.decay_mask
    )


def make_frame(config: ConfigDict) -> Frame:
    return parameterization.make_frame(**config.generate.frame)


def make_model(config: ConfigDict) -> nn.Module:
    return denoiser.make_denoiser(num_classes=config.data.num_classes, **config.generate.model)


def make_init(module: nn.Module, *, latent_shape: tuple[int, ...]) -> Callable[[jax.Array], PyTree]:
    """init(key) -> params of `module` for latents [b, *latent_shape]."""

    def init(key: jax.Array) -> PyTree:
        latents = jnp.zeros((1, *latent_shape), jnp.float32)
        return module.init(key, latents, jnp.zeros(1), jnp.zeros(1, jnp.int32))["params"]

    return init


def _network(module: nn.Module, params: PyTree) -> parameterization.Network:
    return lambda *inputs: cast(jax.Array, module.apply({"params": params}, *inputs))


def make_draw(
    frame: Frame, normalization: Normalization, *, null_class: int, label_dropout: float
) -> Callable[[Any, jax.Array], Any]:
    """sample_inputs of Task: normalised latents, and what diffusion.draw adds to them."""

    def draw(batch: Any, key: jax.Array) -> Any:
        latents = normalization.normalize(float32_latents(batch))
        return latents, parameterization.draw(
            frame,
            key,
            latents,
            batch["label"],
            null_class=null_class,
            label_dropout=label_dropout,
        )

    return draw


def make_loss(
    frame: Frame, module: nn.Module
) -> Callable[[PyTree, Any], tuple[jax.Array, dict[str, jax.Array]]]:
    """loss of Task: the mean of diffusion.losses."""

    def loss(params: PyTree, drawn: Any):
        values = parameterization.losses(frame, _network(module, params), *drawn)
        return jnp.mean(values), {}

    return loss


def make_evaluate(
    frame: Frame, module: nn.Module, normalization: Normalization
) -> Callable[[PyTree, Any], dict[str, jax.Array]]:
    """evaluate(params, batch) -> rows [b]: loss, and blind, the loss of a network that says zero.

    Both are means over 8 noise levels, drawn as in training; noise and levels are the same in every
    evaluation, by place in the batch. Labels are given.
    """

    def evaluate(params: PyTree, batch: Any) -> dict[str, jax.Array]:
        latents = normalization.normalize(float32_latents(batch))

        def one(key):
            drawn = parameterization.draw(
                frame, key, latents, batch["label"], null_class=0, label_dropout=0.0
            )
            return tuple(
                parameterization.losses(frame, network, latents, drawn)
                for network in (_network(module, params), lambda inputs, *_: jnp.zeros_like(inputs))
            )

        keys = jax.random.split(rng.stream_key(0, "noise"), _LEVELS)
        losses, blind = jax.lax.map(one, keys)
        return {"loss": jnp.mean(losses, axis=0), "blind": jnp.mean(blind, axis=0)}

    return evaluate


def summarize(rows: dict[str, np.ndarray]) -> dict[str, float]:
    """denoising_loss, and explained: the part of what is to be said that the network says, at most 1."""
    loss, blind = (float(np.mean(rows[name], dtype=np.float64)) for name in ("loss", "blind"))
    return {"explained": 1 - loss / blind, "denoising_loss": loss}


def make_denoise(config: ConfigDict, params: PyTree) -> Denoise:
    """The denoiser of normalised latents that config.generate.model is with `params`; not guided."""
    return parameterization.make_denoise(make_frame(config), _network(make_model(config), params))


def guided(config: ConfigDict, denoise: Denoise, *, scale: Any = None) -> Denoise:
    """`denoise` with config.generate.guidance, at another scale if one is given."""
    guidance = config.generate.guidance
    return solvers.guided(
        denoise,
        null_class=config.data.num_classes,
        scale=guidance.scale if scale is None else scale,
        interval=tuple(guidance.interval),
    )


def make_sampler(
    config: ConfigDict, normalization: Normalization, *, keep_trajectory: bool = False
) -> Callable[..., solvers.Samples]:
    """(params, numbers [b], labels [b], scale=None) -> Samples of latents as the functaset holds them; pure.

    Sample n of a seed is the same in every batch. Label num_classes asks for any class. `scale` is of guidance, by
    default the config's.
    """
    sample = make_keyed_sampler(config, normalization, keep_trajectory=keep_trajectory)
    key = rng.stream_key(config.seed, "sample")
    return lambda params, *inputs, scale=None: sample(params, key, *inputs, scale=scale)


def make_keyed_sampler(
    config: ConfigDict, normalization: Normalization, *, keep_trajectory: bool
) -> Callable[..., solvers.Samples]:
    """As `make_sampler`, with the key as its second argument: one program for all seeds."""
    settings = config.generate
    schedule = solvers.make_schedule(**settings.schedule)
    solver = solvers.make_solver(**settings.solver)

    def sample(
        params: PyTree,
        key: jax.Array,
        numbers: jax.Array,
        labels: jax.Array,
        *,
        scale: Any = None,
    ) -> solvers.Samples:
        denoise = guided(config, make_denoise(config, params), scale=scale)
        drawn = solvers.sample(
            denoise,
            solver,
            schedule,
            key,
            numbers=numbers,
            labels=labels,
            latent_shape=tuple(config.field.latent_shape),
            keep_trajectory=keep_trajectory,
        )
        restore = normalization.restore
        return solvers.Samples(restore(drawn.latents), jax.vmap(restore)(drawn.trajectory))

    return sample


def make_illustrate(
    config: ConfigDict,
    sampler: Callable[..., solvers.Samples],
    decode: Callable[[np.ndarray], np.ndarray],
) -> Callable[[PyTree], Illustrations]:
    """The first 16 samples, class by class."""
    numbers = jnp.arange(_SHOWN)
    compiled = jax.jit(sampler)

    def illustrate(params: PyTree) -> Illustrations:
        latents = np.asarray(compiled(params, numbers, numbers % config.data.num_classes).latents)
        images = np.clip(decode(latents), 0, 1)
        return Illustrations(images={"samples": images}, histograms={"sampled_latents": latents})

    return illustrate
