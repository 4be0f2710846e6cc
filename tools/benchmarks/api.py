"""Measures what the Python API adds to the compiled programs that it calls.

    python -m tools.benchmarks.api --run=cifar10_spatial --images=256 --scale=4

`run.decode` and `run.encode`, from NumPy to NumPy arrays, run in turns with the compiled field and
inner loop on arrays that are on the device already, in one call for all images.

Output: images, size, and for decode and encode: images_per_second, bare_images_per_second and
ratio (seconds of the API / seconds of the bare program, median of the rounds).
"""

import functools
import statistics
import sys
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

import functa
from tools.benchmarks import harness


def main(argv: Sequence[str] | None = None) -> int:
    parser = harness.parser(__doc__, repeats=9)
    parser.add_argument("--run", default="digits", help="run or released model (%(default)s)")
    parser.add_argument("--images", type=harness.positive, default=256, help="(%(default)s)")
    parser.add_argument("--scale", type=harness.positive, default=4, help="of decode (%(default)s)")
    args = parser.parse_args(argv)
    run = functa.load(args.run)
    h, w, c = run.image_shape
    size = (args.scale * h, args.scale * w)
    images = np.random.default_rng(0).random((args.images, h, w, c)).astype(np.float32)
    latents = run.encode(images)
    decode = jax.jit(functools.partial(run.field, shape=size))
    fit = jax.jit(lambda params, images: run.fitter.encode(params, images)[0])
    on_device = {"images": jnp.asarray(images), "latents": jnp.asarray(latents)}
    programs: dict[str, harness.Program] = {
        "decode": functools.partial(run.decode, latents, size=size),
        "bare_decode": functools.partial(decode, run.params["field"], on_device["latents"]),
        "encode": functools.partial(run.encode, images),
        "bare_encode": functools.partial(fit, run.params, on_device["images"]),
    }
    seconds = harness.time_interleaved(programs, args.repeats)
    result: dict[str, float | str] = {"images": args.images, "size": f"{size[0]}x{size[1]}"}
    for name in ("decode", "encode"):
        own, bare = seconds[name], seconds[f"bare_{name}"]
        result[f"{name}_images_per_second"] = args.images / statistics.median(own)
        result[f"bare_{name}_images_per_second"] = args.images / statistics.median(bare)
        result[f"{name}_ratio"] = statistics.median(
            one / other for one, other in zip(own, bare, strict=True)
        )
    harness.print_result(result, as_json=args.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
