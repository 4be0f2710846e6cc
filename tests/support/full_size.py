"""A gradient of configs/imagenet.py at full size, for one photograph.

`python -m tests.support.full_size PICTURES OUT.npz DEVICES` writes loss, gradient (as one array) and
peak_bytes of the process. The simulated devices share the rows of cells of the image.
"""

import os
import sys

PICTURES, OUT, DEVICES = *sys.argv[1:3], int(sys.argv[3])
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={DEVICES}"

import jax  # noqa: E402
import numpy as np  # noqa: E402
from jax.flatten_util import ravel_pytree  # noqa: E402

from functa.configs import imagenet  # noqa: E402
from functa.data import crops  # noqa: E402
from functa.runtime import memory  # noqa: E402
from functa.runtime import mesh as mesh_lib  # noqa: E402
from functa.training import train_step  # noqa: E402
from functa.training.tasks.builders import build_meta_learning  # noqa: E402


def main() -> None:
    config = imagenet.get_config()
    config.meta_learn.update(cells_per_image=0, window=1, batch_size=1)
    config.mesh.cell = DEVICES
    config.inner_loop.chunks = min(8, 32 // DEVICES)
    (image,) = crops.read_crops(PICTURES, shapes=[(256, 256)], channels=3, count=1)
    task = build_meta_learning(config, sources={})
    mesh = mesh_lib.make_mesh(**config.mesh)
    params = jax.jit(task.init)(jax.random.key(0))
    # Initially, the weights of neighboring cells are zero.
    weight = params["field"]["map"]["weight"]
    noise = jax.random.normal(jax.random.key(1), weight.shape)
    params["field"]["map"] = {"weight": weight + 0.3 * noise / weight.shape[0] ** 0.5}
    gradients = jax.jit(train_step.make_gradients(task, mesh=mesh, micro_batches=1))
    batch = mesh_lib.to_devices(mesh, {"image": image}, task.batch_spec)
    (loss, _), gradient = gradients(
        jax.device_put(params, mesh_lib.replicated(mesh)), batch, jax.random.key(2)
    )
    flat = np.asarray(ravel_pytree(jax.device_get(gradient))[0])
    np.savez(OUT, loss=np.asarray(loss), gradient=flat, peak_bytes=memory.peak_bytes())


main()
