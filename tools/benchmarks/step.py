#!/usr/bin/env python3
"""Times a meta-learning step on whole images, beside its plain reference and the machine's ceiling.

    python -m tools.benchmarks.step                                  the full-size field on 32x32 images
    python -m tools.benchmarks.step --config.field.width=64 --json   any change of the config; for machines
    python -m tools.benchmarks.step --noreference                    for what the reference cannot do or hold

In one process and turn by turn, so that a noisy machine disturbs all alike: the step as training
runs it, the same step written plainly (python -m tools.benchmarks.reference: per-image vmap, modulations per pixel,
jnp.sin, no shared first step), and plain matrix products of the step's own shape and type, the
ceiling. The reference knows whole images and the loss mse only, so beside it both have them; with --noreference
cells, flips and loss are the config's. Numbers are medians of --repeats turns; operations are the multiply-adds
of the traced step (functa/plan/operations.py). `peak_bytes` is of all that the process did, the reference included.

--json prints one object: images_per_second, reference_images_per_second, speedup_over_reference,
seconds (of a step), operations_per_image (multiply-adds), operations_per_second, ceiling_operations_per_second,
fraction_of_ceiling, spread (of images_per_second: (max - min) / median), peak_bytes, batch_size,
repeats, device, settings.
"""

import functools
import json
import statistics
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from ml_collections import ConfigDict, config_flags

from functa.fields.fitter import build_field
from functa.fields.pixels import to_float
from functa.plan import operations
from functa.plan.programs import Programs
from functa.runtime import cli_errors, rng
from functa.runtime import mesh as mesh_lib
from functa.runtime.memory import keep_freed_memory
from functa.runtime.mesh import device_name
from functa.training.tasks import meta_learning
from functa.training.tasks.builders import build_meta_learning
from functa.training.train_step import ALL_FINITE, initial_state, make_step
from tools.benchmarks import reference as plain
from tools.benchmarks.harness import Run, ceiling, knows_reference, measure, peak_bytes, spread

_CONFIG = config_flags.DEFINE_config_file(
    "config", "configs/cifar10_spatial.py:8x8x16,nearest", "Experiment.", lock_config=True
)
_BATCH = flags.DEFINE_integer("batch_size", 16, "Images a step.", lower_bound=1)
_REPEATS = flags.DEFINE_integer("repeats", 7, "Turns.", lower_bound=1)
_REFERENCE = flags.DEFINE_bool("reference", True, "Run the plain reference too.")
_JSON = flags.DEFINE_bool("json", False, "Print one JSON object.")


def training_step(config: ConfigDict, images: np.ndarray) -> Run:
    """The step of functa/train.py."""
    task = build_meta_learning(config, sources={})
    mesh = mesh_lib.make_mesh(**config.mesh)
    step_fn = make_step(
        task, mesh=mesh, seed=0, ema_decay=0.0, micro_batches=config.meta_learn.micro_batches
    )
    batch = mesh_lib.to_devices(mesh, {"image": images}, task.batch_spec)

    place = mesh_lib.replicated(mesh)
    init = functools.partial(initial_state, task)
    state = jax.jit(init, out_shardings=place)(rng.stream_key(0, "init"))
    carry = [state, jax.device_put(ALL_FINITE, place)]

    def run():
        carry[0], logs, carry[1] = step_fn(carry[0], batch, carry[1])
        return logs

    return run


def reference_step(config: ConfigDict, images: np.ndarray) -> Run:
    """The same step, its loss written plainly."""
    task = build_meta_learning(config, sources={})
    field = build_field(config)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, optimizer, batch):
        loss = functools.partial(plain.loss, field, steps=config.inner_loop.steps)
        value, gradient = jax.value_and_grad(loss)(params, to_float(batch))
        updates, optimizer = task.optimizer.transformation.update(gradient, optimizer, params)
        return jax.tree.map(jnp.add, params, updates), optimizer, value

    params = jax.jit(task.init)(rng.stream_key(0, "init"))
    carry = [params, task.optimizer.transformation.init(params)]

    def run():
        carry[0], carry[1], value = step(*carry, images)
        return value

    return run


def bench(config: ConfigDict, *, batch_size: int, repeats: int, reference: bool) -> dict[str, Any]:
    """What the module's docstring says."""
    images = np.random.default_rng(0).integers(
        0, 256, (batch_size, *config.data.image_shape), np.uint8
    )
    products, of_products = ceiling(config, batch_size)
    runs: dict[str, Run] = {"step": training_step(config, images), "ceiling": products}
    if reference:
        runs["reference"] = reference_step(config, images)
    seconds = measure(runs, repeats)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    mesh = mesh_lib.make_mesh(**config.mesh)
    step = Programs(config).train_step("meta_learn", mesh, batch_size=batch_size)
    work = operations.count(step.function, *step.arguments)
    per_image = work.all_multiply_adds * mesh.size / batch_size
    rate = batch_size / medians["step"]
    highest = of_products / medians["ceiling"]
    beside = {}
    if reference:
        beside = {
            "reference_images_per_second": batch_size / medians["reference"],
            "speedup_over_reference": medians["reference"] / medians["step"],
        }
    return {
        "images_per_second": rate,
        "seconds": medians["step"],
        **beside,
        "operations_per_image": per_image,
        "operations_per_second": per_image * rate,
        "ceiling_operations_per_second": highest,
        "fraction_of_ceiling": per_image * rate / highest,
        "spread": spread(seconds["step"], medians["step"]),
        "peak_bytes": peak_bytes(),
        "batch_size": batch_size,
        "repeats": repeats,
        "device": device_name(),
        "settings": f"{config.name} map {config.field.map} upsampling {config.field.upsampling} "
        f"width {config.field.width} depth {config.field.depth} loss {config.meta_learn.loss}",
    }


def main(argv: list[str]) -> int:
    del argv  # flags only
    config = _CONFIG.value
    problems = meta_learning.validate(config)
    parts = config.meta_learn.micro_batches
    if parts < 1 or _BATCH.value % (jax.device_count() * parts):
        problems.append(
            f"--batch_size={_BATCH.value} must be a multiple of the {jax.device_count()} devices, in "
            f"meta_learn.micro_batches={parts} parts each, at least 1"
        )
    if _REFERENCE.value:
        with config.unlocked():
            config.meta_learn.update(cells_per_image=0, flips=False, loss="mse")
        problems += knows_reference(config)
    if problems:
        return cli_errors.report_user_error("bench_step", "\n".join(problems))
    keep_freed_memory()
    result = bench(
        config, batch_size=_BATCH.value, repeats=_REPEATS.value, reference=_REFERENCE.value
    )
    if _JSON.value:
        print(json.dumps(result))
        return 0
    for name, value in result.items():
        print(f"{name:<32}{value:,.4g}" if isinstance(value, float) else f"{name:<32}{value}")
    return 0


if __name__ == "__main__":
    app.run(main, flags_parser=cli_errors.flags_parser("bench_step", _CONFIG))
