"""Times the meta-learning step or the encoding of a batch, beside a plain reference and a ceiling.

    python -m tools.benchmarks.field                              the step of the full-size field
    python -m tools.benchmarks.field --program=encode             the inner loop of encode
    python -m tools.benchmarks.field --no-reference --config.field.width=64 --config.inner_loop.chunks=8

One process runs in turns: the program as the stage runs it; the same mathematics written plainly
(tools/benchmarks/reference.py); and matrix products of the shape of a hidden layer, the ceiling. The
reference supports nearest interpolation, a linear or conv3x3 map, shifts, whole images and the loss
mse, so a step beside it uses whole images and mse. Images are noise.

Output: images_per_second (median), spread ((max - min) / median), reference_images_per_second and
speedup_over_reference, multiply_adds_per_image (of the traced program), multiply_adds_per_second,
ceiling_per_second, fraction_of_ceiling, peak_bytes (of the process, or of the device if it reports
it), seconds (of one call), batch_size, device, config.
"""

import functools
import statistics
import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from functa.fields.fitter import build_field, build_fitter
from functa.fields.pixels import to_float
from functa.plan import operations
from functa.plan.programs import Programs
from functa.runtime import mesh as mesh_lib
from functa.runtime import rng
from functa.runtime.memory import keep_freed_memory
from functa.training.tasks import builders
from functa.training.train_step import ALL_FINITE, initial_state, make_step
from tools.benchmarks import harness, reference
from tools.benchmarks.harness import Program


def training_step(config: ConfigDict, images: np.ndarray) -> Program:
    """The step of the stage meta_learn."""
    task, mesh = builders.build_meta_learning(config, sources={}), mesh_lib.make_mesh(**config.mesh)
    step = make_step(
        task, mesh=mesh, seed=0, ema_decay=0.0, micro_batches=config.meta_learn.micro_batches
    )
    batch = mesh_lib.to_devices(mesh, {"image": images}, task.batch_spec)
    replicated = mesh_lib.replicated(mesh)
    init = functools.partial(initial_state, task)
    state = jax.jit(init, out_shardings=replicated)(rng.stream_key(0, "init"))
    carry = [state, jax.device_put(ALL_FINITE, replicated)]

    def run():
        carry[0], logs, carry[1] = step(carry[0], batch, carry[1])
        return logs

    return run


def reference_step(config: ConfigDict, images: np.ndarray) -> Program:
    """The same step with the reference's loss."""
    task, field = builders.build_meta_learning(config, sources={}), build_field(config)
    loss = functools.partial(reference.loss, field, steps=config.inner_loop.steps)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, optimizer, batch):
        value, gradient = jax.value_and_grad(loss)(params, to_float(batch))
        updates, optimizer = task.optimizer.transformation.update(gradient, optimizer, params)
        return jax.tree.map(jnp.add, params, updates), optimizer, value

    params = jax.jit(task.init)(rng.stream_key(0, "init"))
    carry = [params, task.optimizer.transformation.init(params)]

    def run():
        carry[0], carry[1], value = step(*carry, images)
        return value

    return run


def encoding(config: ConfigDict, images: np.ndarray) -> dict[str, Program]:
    """The inner loop of the stage encode, and the reference's."""
    fitter = build_fitter(config)
    params = jax.jit(fitter.init)(rng.stream_key(0, "init"))
    batch = to_float(mesh_lib.to_devices(mesh_lib.make_mesh(), {"image": images})["image"])

    @jax.jit
    def fit_plainly(params, images):
        fit = functools.partial(reference.fit, fitter.field, steps=config.inner_loop.steps)
        return jax.vmap(fit, (None, None, 0))(params["field"], params["log_inner_lrs"], images)

    return {
        "program": functools.partial(jax.jit(fitter.encode), params, batch),
        "reference": functools.partial(fit_plainly, params, batch),
    }


def measure(
    config: ConfigDict, *, program: str, batch_size: int, repeats: int, with_reference: bool
) -> dict[str, Any]:
    """The result that the module describes."""
    shape = (batch_size, *config.data.image_shape)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    mesh = mesh_lib.make_mesh(**config.mesh)
    if program == "step":
        programs = {"program": training_step(config, images)}
        if with_reference:
            programs["reference"] = reference_step(config, images)
        traced = Programs(config).train_step("meta_learn", mesh, batch_size=batch_size)
        operations_of = mesh.size / batch_size
    else:
        programs = encoding(config, images)
        if not with_reference:
            del programs["reference"]
        traced = Programs(config).encoder(mesh_lib.make_mesh(jax.devices()[:1]))
        operations_of = 1 / config.encode.batch_size
    programs["ceiling"], ceiling_work = harness.ceiling(config, batch_size)
    seconds = harness.time_interleaved(programs, repeats)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    work = operations.count(traced.function, *traced.arguments).all_multiply_adds * operations_of
    rate, ceiling = batch_size / median["program"], ceiling_work / median["ceiling"]
    result = {"images_per_second": rate, "spread": harness.spread(seconds["program"])}
    if with_reference:
        result["reference_images_per_second"] = batch_size / median["reference"]
        result["speedup_over_reference"] = median["reference"] / median["program"]
    return result | {
        "multiply_adds_per_image": work,
        "multiply_adds_per_second": work * rate,
        "ceiling_per_second": ceiling,
        "fraction_of_ceiling": work * rate / ceiling,
        "peak_bytes": harness.peak_bytes(),
        "seconds": median["program"],
        "batch_size": batch_size,
        "device": mesh_lib.device_name(),
        "config": config.name,
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = harness.parser(__doc__, repeats=7)
    parser.add_argument("--program", choices=("step", "encode"), default="step")
    parser.add_argument("--batch-size", type=harness.positive, default=16, help="images (16)")
    parser.add_argument("--no-reference", action="store_true")
    args, config = harness.parse_with_config(parser, argv, default="cifar10_spatial:8x8x16,nearest")
    config.encode.batch_size = max(1, args.batch_size // jax.local_device_count())
    parts = jax.device_count() * config.meta_learn.micro_batches
    if args.batch_size % parts:
        parser.error(f"--batch-size={args.batch_size} must be a multiple of {parts}")
    if not args.no_reference:
        if problem := reference.unsupported(config):
            parser.error(f"{problem}; use --no-reference")
        config.meta_learn.update(cells_per_image=0, flips=False, loss="mse")
    keep_freed_memory()
    result = measure(
        config,
        program=args.program,
        batch_size=args.batch_size,
        repeats=args.repeats,
        with_reference=not args.no_reference,
    )
    harness.print_result(result, as_json=args.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
