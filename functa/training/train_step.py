"""One training step: sharded gradients, optimizer, moving average and checks for non-finite values."""

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

CHECKED_VALUES = ("loss", "gradient", "update")
# Initial value of `first_nonfinite`: (step or -1, index into CHECKED_VALUES).
ALL_FINITE = np.array([-1, 0], np.int32)


class TrainState(NamedTuple):
    """State of training.

    Attributes:
      step: int32, number of completed updates.
      params: parameters.
      optimizer: state of the optimizer.
      ema: exponential moving average of params.
    """

    step: jax.Array
    params: Any
    optimizer: optax.OptState
    ema: Any


def initial_state(task: Task, key: jax.Array) -> TrainState:
    """The state before the first step."""
    params = task.init(key)
    ema = jax.tree.map(jnp.copy, params)
    return TrainState(jnp.int32(0), params, task.optimizer.transformation.init(params), ema)


def state_shapes(task: Task, mesh: Mesh) -> TrainState:
    """A TrainState of jax.ShapeDtypeStruct with shardings."""
    shapes = jax.eval_shape(functools.partial(initial_state, task), jax.random.key(0))
    return jax.tree.map(
        lambda leaf, axis: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, mesh_lib.over_fsdp(axis))
        ),
        shapes,
        _fsdp_axes(task, mesh, shapes),
    )


def _fsdp_axes(task: Task, mesh: Mesh, tree: Any) -> Any:
    """Axis of each array that is sharded over fsdp; -1 if the array is replicated."""
    if task.shard_params:
        return mesh_lib.sharded_axes(mesh, tree)
    return jax.tree.map(lambda leaf: -1, tree)


def make_gradients(task: Task, *, mesh: Mesh, micro_batches: int) -> Callable:
    """Returns (params, global batch, key) -> ((loss, logs), gradient); gradients are sharded as params.

    Each device computes the gradient of its shard of the batch, and one all-reduce averages them.
    Automatic partitioning would instead all-reduce at every use of a parameter, and with a shared
    first inner step also its Jacobian: more than ten times the traffic.

    Args:
      micro_batches: number of equal parts into which a device splits its shard and which it processes
        in sequence. Needs the memory of one part; results agree up to rounding. Must divide the
        number of examples per device.
    """
    axes = _fsdp_axes(task, mesh, jax.eval_shape(task.init, jax.random.key(0)))
    param_specs = jax.tree.map(mesh_lib.over_fsdp, axes)
    fsdp = mesh.shape["fsdp"]

    def gather(leaf, axis):
        return leaf if axis < 0 else jax.lax.all_gather(leaf, "fsdp", axis=axis, tiled=True)

    def reduce_scatter(leaf, axis):
        return jax.lax.psum_scatter(leaf, "fsdp", scatter_dimension=axis, tiled=True) / fsdp

    def shard_gradients(params, shard):
        params = jax.tree.map(gather, params, axes)
        values, gradient = _value_and_grad(task.loss, micro_batches)(params, shard)
        leaves, structure = jax.tree.flatten(gradient)
        leaf_axes = jax.tree.leaves(axes)
        pairs = list(zip(leaves, leaf_axes, strict=True))
        replicated = [leaf for leaf, axis in pairs if axis < 0]
        sharded = [reduce_scatter(leaf, axis) for leaf, axis in pairs if axis >= 0]
        values, replicated = _mean((values, replicated), mesh_lib.AXES)
        sharded = _mean(sharded, ("data", "cell")) if sharded else sharded
        merged = [(replicated if axis < 0 else sharded).pop(0) for axis in leaf_axes]
        return values, jax.tree.unflatten(structure, merged)

    # check_vma=True would insert one all-reduce per use of a parameter.
    batch_gradients = jax.shard_map(
        shard_gradients,
        mesh=mesh,
        in_specs=(param_specs, task.batch_spec),
        out_specs=(P(), param_specs),
        check_vma=False,
    )

    def gradients(params, batch, key):
        inputs = task.sample_inputs(batch, key)
        if len(task.batch_spec) > 1:
            # Devices that share an example sample it redundantly, which avoids sending pixels.
            sharding = NamedSharding(mesh, P(task.batch_spec[0]))
            inputs = jax.lax.with_sharding_constraint(inputs, sharding)
        (loss, logs), gradient = batch_gradients(params, inputs)
        return (loss, task.finalize_logs(logs)), gradient

    return gradients


def _value_and_grad(loss: Callable, parts: int) -> Callable:
    """jax.value_and_grad(loss, has_aux=True), averaged over equal parts of the batch in sequence."""
    value_and_grad = jax.value_and_grad(loss, has_aux=True)
    if parts == 1:
        return value_and_grad

    def averaged(params, batch):
        batches = jax.tree.map(lambda leaf: leaf.reshape(parts, -1, *leaf.shape[1:]), batch)

        def add(total, batch):
            return jax.tree.map(jnp.add, total, value_and_grad(params, batch)), None

        first = jax.tree.map(lambda leaf: leaf[0], batches)
        shapes = jax.eval_shape(value_and_grad, params, first)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        total, _ = jax.lax.scan(add, zeros, batches)
        return jax.tree.map(lambda leaf: leaf / parts, total)

    return averaged


def _mean(tree: Any, axes: tuple[str, ...]) -> Any:
    """Mean over mesh axes, by one all-reduce of the concatenated arrays.

    On CPUs each all-reduce between processes takes 4 ms (docs/SCALE.md).
    """
    flat, unravel = ravel_pytree(tree)
    return unravel(jax.lax.pmean(flat, axes))


def make_step(
    task: Task, *, mesh: Mesh, seed: int, ema_decay: float, micro_batches: int
) -> jax.stages.Wrapped:
    """Returns the compiled step: (state, batch, first_nonfinite) -> (state, logs, first_nonfinite).

    The step donates `state` and `first_nonfinite`. `first_nonfinite` is int32 [2]: the first step with a
    non-finite value (-1 if none) and its index into CHECKED_VALUES. It stays on the devices, so that
    checking does not synchronize.

    Args:
      micro_batches: see make_gradients.
    """
    gradients = make_gradients(task, mesh=mesh, micro_batches=micro_batches)

    def step_fn(state: TrainState, batch, first_nonfinite):
        key = jax.random.fold_in(rng.stream_key(seed, "noise"), state.step)
        (loss, logs), gradient = gradients(state.params, batch, key)
        updates, optimizer = task.optimizer.transformation.update(
            gradient, state.optimizer, state.params
        )
        params = optax.apply_updates(state.params, updates)
        # While the second term is smaller, the average is a power function of the step with
        # relative width 9 %, which forgets the initial parameters (Karras et al. 2024,
        # arXiv 2312.02696, section 3.1, with gamma = 8).
        decay = jnp.minimum(jnp.float32(ema_decay), (1 + state.step) / (10 + state.step))
        ema = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, state.ema, params)
        gradient_norm = optax.tree.norm(gradient)
        update_norm = optax.tree.norm(updates)
        nonfinite = ~jnp.isfinite(jnp.stack([loss, gradient_norm, update_norm]))
        this_step = jnp.stack([state.step, jnp.argmax(nonfinite).astype(jnp.int32)])
        is_first = (first_nonfinite[0] < 0) & jnp.any(nonfinite)
        first_nonfinite = jnp.where(is_first, this_step, first_nonfinite)
        logs = logs | {
            "loss": loss,
            "gradient_norm": gradient_norm,
            "update_ratio": update_norm / optax.tree.norm(state.params),
            "learning_rate": jnp.asarray(task.optimizer.learning_rate(state.step), jnp.float32),
        }
        return TrainState(state.step + 1, params, optimizer, ema), logs, first_nonfinite

    state_shardings = jax.tree.map(lambda leaf: leaf.sharding, state_shapes(task, mesh))
    replicated = mesh_lib.replicated(mesh)
    return jax.jit(
        step_fn,
        donate_argnums=(0, 2),
        out_shardings=(state_shardings, replicated, replicated),
    )
