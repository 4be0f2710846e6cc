"""One step of training: gradients over the mesh, the optimiser, the moving average, what is watched."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from functa import mesh as mesh_lib
from functa import rng
from functa.tasks import Task

WATCHED = ("loss", "gradient", "update")
NONE_BAD = np.array([-1, 0], np.int32)  # what `make_step`'s step begins with


class TrainState(NamedTuple):
    """step: int32, updates done; ema: moving average of params, params themselves where there is none."""

    step: jax.Array
    params: Any
    optimizer: optax.OptState
    ema: Any


def initial_state(task: Task, key: jax.Array) -> TrainState:
    """The state before the first step."""
    params = task.init(key)
    ema = jax.tree.map(jnp.copy, params)
    return TrainState(jnp.int32(0), params, task.optimizer.init(params), ema)


def make_gradients(task: Task, *, mesh: Mesh) -> Callable:
    """(params, global batch, key) -> ((loss, logs), gradient of the params), all replicated."""
    if task.shares is None:
        return jax.value_and_grad(task.loss, has_aux=True)
    draw, loss, finish = task.shares

    def of_share(params, share):
        # One array: gloo, which connects processes on CPUs, takes 4 ms for each of twenty (docs/SCALE.md).
        flat, restore = ravel_pytree(jax.value_and_grad(loss, has_aux=True)(params, share))
        return restore(jax.lax.pmean(flat, "data"))

    # check_vma would sum every use of the params by itself, which is what this is to avoid.
    of_batch = jax.shard_map(
        of_share, mesh=mesh, in_specs=(P(), P("data")), out_specs=P(), check_vma=False
    )

    def gradients(params, batch, key):
        (value, logs), gradient = of_batch(params, draw(batch, key))
        return (value, finish(logs)), gradient

    return gradients


def make_step(task: Task, *, mesh: Mesh, seed: int, ema_decay: float) -> jax.stages.Wrapped:
    """(state, batch, first_bad) -> (state, logs, first_bad), compiled, its inputs' memory reused.

    first_bad: int32 [2], the first step that made a number that is not finite, -1 while there is none, and
    which one it was, in WATCHED; it stays on the devices, so that watching costs no synchronisation.
    """
    gradients = make_gradients(task, mesh=mesh)

    def step_fn(state: TrainState, batch, first_bad):
        key = jax.random.fold_in(rng.stream_key(seed, "noise"), state.step)
        (loss, logs), gradient = gradients(state.params, batch, key)
        updates, optimizer = task.optimizer.update(gradient, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        # An average that starts with the first parameters and forgets them as fast as it can
        # afford to.
        decay = jnp.minimum(jnp.float32(ema_decay), (1 + state.step) / (10 + state.step))
        ema = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, state.ema, params)
        norm = optax.tree.norm(gradient)
        change = optax.tree.norm(updates)
        bad = ~jnp.isfinite(jnp.stack([loss, norm, change]))
        found = jnp.stack([state.step, jnp.argmax(bad).astype(jnp.int32)])
        first_bad = jnp.where((first_bad[0] < 0) & jnp.any(bad), found, first_bad)
        logs = logs | {
            "loss": loss,
            "gradient_norm": norm,
            "update_ratio": change / optax.tree.norm(state.params),
            "learning_rate": jnp.asarray(task.learning_rate(state.step), jnp.float32),
        }
        return TrainState(state.step + 1, params, optimizer, ema), logs, first_bad

    return jax.jit(step_fn, donate_argnums=(0, 2), out_shardings=mesh_lib.replicated(mesh))
