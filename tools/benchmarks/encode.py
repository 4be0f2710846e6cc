#!/usr/bin/env python3
"""Times encoding, beside its plain reference and the machine's ceiling, and the whole stage with its files.

    python -m tools.benchmarks.encode                                  the full-size field on 32x32 images
    python -m tools.benchmarks.encode --config.field.width=64 --json   any change of the config; for machines

In one process and turn by turn: the fit of a batch as the stage encode runs it, the same written
plainly (reference.py: per-image vmap, modulations per pixel, jnp.sin, no shared first step), and
plain matrix products of a hidden layer's shape and type, the ceiling. After that the stage itself
encodes --batches batches of noise to a functaset in a temporary folder, with reading, augmenting,
rounding, writing and hashing; `stage_over_fit` is its rate by that of the fit alone, 1 where
nothing but the device is waited for. Numbers are medians of --repeats turns; operations are the
multiply-adds of the traced fit (functa/plan/operations.py).

--json prints one object: images_per_second, reference_images_per_second, speedup_over_reference,
operations_per_image (multiply-adds), operations_per_second, ceiling_operations_per_second,
fraction_of_ceiling, spread ((max - min) / median), stage_images_per_second, stage_over_fit, peak_bytes,
batch_size, repeats, device, settings.
"""

import functools
import json
import statistics
import tempfile
from typing import Any

import jax
import numpy as np
from absl import app, flags
from ml_collections import ConfigDict, config_flags

from functa.fields.fitter import build_field, build_fitter
from functa.fields.pixels import to_float
from functa.pipeline import encode
from functa.plan import operations
from functa.plan.programs import Programs
from functa.runtime import cli_errors, mesh, rng
from functa.runtime.memory import keep_freed_memory
from functa.runtime.mesh import device_name
from functa.training.tasks import meta_learning
from functa.training.tasks.builders import build_meta_learning
from tools.benchmarks import reference as plain
from tools.benchmarks.harness import Run, ceiling, knows_reference, measure, peak_bytes, spread

_CONFIG = config_flags.DEFINE_config_file(
    "config", "configs/cifar10_spatial.py:8x8x16,nearest", "Experiment.", lock_config=True
)
_REPEATS = flags.DEFINE_integer("repeats", 7, "Turns.", lower_bound=1)
_BATCHES = flags.DEFINE_integer("batches", 16, "That the stage encodes.", lower_bound=1)
_JSON = flags.DEFINE_bool("json", False, "Print one JSON object.")


class Noise:
    """Images of noise, as functa/data/images.py would read them."""

    def __init__(self, num_examples: int, image_shape: tuple[int, int, int]):
        self.num_examples = num_examples
        rng = np.random.default_rng(0)
        self._images = rng.integers(0, 256, (num_examples, *image_shape), np.uint8)

    def read(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        label = np.zeros(len(indices), np.int32)
        return {"image": self._images[indices], "label": label, "id": indices.astype(np.int64)}


def reference(config: ConfigDict, params: Any, images: jax.Array) -> Run:
    """The same fit, written plainly."""
    field = build_field(config)

    @jax.jit
    def fit(params, images):
        one = functools.partial(plain.fit, field, steps=config.inner_loop.steps)
        return jax.vmap(lambda image: one(params["field"], params["log_inner_lrs"], image))(images)

    return functools.partial(fit, params, images)


def whole_stage(config: ConfigDict, encoder: Any, params: Any, batches: int) -> float:
    """Images a second of the stage's own work, files included, compilation not."""
    count = batches * config.encode.batch_size * jax.local_device_count()
    shape = tuple(config.data.image_shape)
    splits: Any = {
        "train": Noise(count, shape),
        "validation": Noise(0, shape),
        "test": Noise(config.encode.batch_size, shape),
    }
    with config.unlocked():
        config.encode.num_augmentations = 1
    with tempfile.TemporaryDirectory(prefix="bench-encode-") as folder:
        result = encode.encode(
            directory=folder,
            splits=splits,
            fit=functools.partial(encoder, params),
            field_digest="sha256:none",
            **encode.encode_arguments(config),
            class_names=(),
            progress=lambda done, total: None,
            stop=lambda: None,
            process_index=0,
            process_count=1,
        )
    return result["examples_per_second"]


def bench(config: ConfigDict, *, repeats: int, batches: int) -> dict[str, Any]:
    """What the module's docstring says."""
    batch_size = config.encode.batch_size * jax.local_device_count()
    task = build_meta_learning(config, sources={})
    params = jax.jit(task.init)(rng.stream_key(0, "init"))
    noise = Noise(batch_size, tuple(config.data.image_shape)).read(np.arange(batch_size))
    on_devices = mesh.to_devices(mesh.make_mesh(), {"image": noise["image"]})
    images = to_float(on_devices["image"])
    encoder = jax.jit(build_fitter(config).encode)
    products, of_products = ceiling(config, batch_size)
    runs: dict[str, Run] = {
        "fit": functools.partial(encoder, params, images),
        "reference": reference(config, params, images),
        "ceiling": products,
    }
    seconds = measure(runs, repeats)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    fit = Programs(config).encoder(mesh.make_mesh(jax.devices()[:1]))
    work = operations.count(fit.function, *fit.arguments)
    per_image = work.all_multiply_adds / config.encode.batch_size
    rate = batch_size / medians["fit"]
    highest = of_products / medians["ceiling"]
    stage = whole_stage(config, encoder, params, batches)
    return {
        "images_per_second": rate,
        "reference_images_per_second": batch_size / medians["reference"],
        "speedup_over_reference": medians["reference"] / medians["fit"],
        "operations_per_image": per_image,
        "operations_per_second": per_image * rate,
        "ceiling_operations_per_second": highest,
        "fraction_of_ceiling": per_image * rate / highest,
        "spread": spread(seconds["fit"], medians["fit"]),
        "stage_images_per_second": stage,
        "stage_over_fit": stage / rate,
        "peak_bytes": peak_bytes(),
        "batch_size": batch_size,
        "repeats": repeats,
        "device": device_name(),
        "settings": f"{config.name} map {config.field.map} upsampling {config.field.upsampling} "
        f"width {config.field.width} depth {config.field.depth}",
    }


def main(argv: list[str]) -> int:
    del argv  # flags only
    config = _CONFIG.value
    problems = meta_learning.validate(config) + knows_reference(config)
    problems += encode.validate(config.encode, image_shape=tuple(config.data.image_shape))
    if problems:
        return cli_errors.report_user_error("bench_encode", "\n".join(problems))
    keep_freed_memory()
    result = bench(config, repeats=_REPEATS.value, batches=_BATCHES.value)
    if _JSON.value:
        print(json.dumps(result))
        return 0
    for name, value in result.items():
        print(f"{name:<32}{value:,.4g}" if isinstance(value, float) else f"{name:<32}{value}")
    return 0


if __name__ == "__main__":
    app.run(main, flags_parser=cli_errors.flags_parser("bench_encode", _CONFIG))
