"""One step of training: gradients over the mesh, the optimiser, the moving average, what is watched."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from functa.runtime import mesh as mesh_lib
from functa.runtime import rng
from functa.training.tasks import Task

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


def described_state(task: Task, mesh: Mesh) -> TrainState:
    """Shapes, types and places of the arrays of a state."""
    shapes = jax.eval_shape(functools.partial(initial_state, task), jax.random.key(0))
    return jax.tree.map(
        lambda leaf, axis: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, mesh_lib.over_fsdp(axis))
        ),
        shapes,
        _axes(task, mesh, shapes),
    )


def _axes(task: Task, mesh: Mesh, tree: Any) -> Any:
    if task.shards_params:
        return mesh_lib.sharded_axes(mesh, tree)
    return jax.tree.map(lambda leaf: -1, tree)


def make_gradients(task: Task, *, mesh: Mesh, micro_batches: int) -> Callable:
    """(params, global batch, key) -> ((loss, logs), gradient of the params), placed as the params are.

    Each device takes the gradient of its share, and one all-reduce joins them. Left to the compiler, each
    of the places where a parameter is used would send a contribution of its own, and with a shared first
    inner step its Jacobian too: ten and more times as much.

    Args:
      micro_batches: parts that a device works on its share in, one after the other: the memory of one of
        them, and the same numbers to rounding. It must divide the examples of a device.
    """
    axes = _axes(task, mesh, jax.eval_shape(task.init, jax.random.key(0)))
    places = jax.tree.map(mesh_lib.over_fsdp, axes)
    fsdp = mesh.shape["fsdp"]

    def gather(leaf, axis):
        return leaf if axis < 0 else jax.lax.all_gather(leaf, "fsdp", axis=axis, tiled=True)

    def scatter(leaf, axis):
        summed = jax.lax.psum_scatter(leaf, "fsdp", scatter_dimension=axis, tiled=True)
        return summed / fsdp

    def of_share(params, share):
        params = jax.tree.map(gather, params, axes)
        told, gradient = _in_parts(task.loss, micro_batches)(params, share)
        leaves, tree = jax.tree.flatten(gradient)
        kinds = jax.tree.leaves(axes)
        whole = [leaf for leaf, axis in zip(leaves, kinds, strict=True) if axis < 0]
        parts = [scatter(leaf, axis) for leaf, axis in zip(leaves, kinds, strict=True) if axis >= 0]
        told, whole = _mean((told, whole), mesh_lib.AXES)
        parts = _mean(parts, ("data", "cell")) if parts else parts
        joined = [(whole if axis < 0 else parts).pop(0) for axis in kinds]
        return told, jax.tree.unflatten(tree, joined)

    # check_vma would sum every use of the params by itself, which is what this is to avoid.
    of_batch = jax.shard_map(
        of_share,
        mesh=mesh,
        in_specs=(places, task.spec),
        out_specs=(P(), places),
        check_vma=False,
    )

    def gradients(params, batch, key):
        drawn = task.draw(batch, key)
        if len(task.spec) > 1:
            # Devices that share an example draw it each for themselves, or they would send each other pixels.
            drawn = jax.lax.with_sharding_constraint(drawn, NamedSharding(mesh, P(task.spec[0])))
        (value, logs), gradient = of_batch(params, drawn)
        return (value, task.finish(logs)), gradient

    return gradients


def _in_parts(loss: Callable, count: int) -> Callable:
    """((loss, logs), gradient) of a batch, which are means, as means over `count` equal parts of it."""
    of_part = jax.value_and_grad(loss, has_aux=True)
    if count == 1:
        return of_part

    def of_batch(params, batch):
        parts = jax.tree.map(lambda leaf: leaf.reshape(count, -1, *leaf.shape[1:]), batch)

        def add(total, part):
            return jax.tree.map(jnp.add, total, of_part(params, part)), None

        first = jax.eval_shape(of_part, params, jax.tree.map(lambda leaf: leaf[0], parts))
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), first)
        total, _ = jax.lax.scan(add, zeros, parts)
        return jax.tree.map(lambda leaf: leaf / count, total)

    return of_batch


def _mean(tree: Any, axes: tuple[str, ...]) -> Any:
    """Over the devices of these axes, as one array: gloo, which connects processes on CPUs, takes 4 ms for
    each of twenty (docs/SCALE.md)."""
    flat, restore = ravel_pytree(tree)
    return restore(jax.lax.pmean(flat, axes))


def make_step(
    task: Task, *, mesh: Mesh, seed: int, ema_decay: float, micro_batches: int
) -> jax.stages.Wrapped:
    """(state, batch, first_bad) -> (state, logs, first_bad), compiled, its inputs' memory reused.

    micro_batches: see make_gradients.
    first_bad: int32 [2], the first step that made a number that is not finite, -1 while there is none, and
    which one it was, in WATCHED; it stays on the devices, so that watching costs no synchronisation.
    """
    gradients = make_gradients(task, mesh=mesh, micro_batches=micro_batches)

    def step_fn(state: TrainState, batch, first_bad):
        key = jax.random.fold_in(rng.stream_key(seed, "noise"), state.step)
        (loss, logs), gradient = gradients(state.params, batch, key)
        updates, optimizer = task.optimizer.update(gradient, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        # An average that starts with the first parameters and forgets them as fast as it can afford to: while
        # the second term counts, a power function of the step, of relative width 9 % (Karras et al. 2024,
        # arXiv 2312.02696, section 3.1, with gamma = 8).
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

    places = jax.tree.map(lambda leaf: leaf.sharding, described_state(task, mesh))
    everywhere = mesh_lib.replicated(mesh)
    return jax.jit(step_fn, donate_argnums=(0, 2), out_shardings=(places, everywhere, everywhere))
