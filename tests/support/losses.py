"""Loss and training of a task on one device, without the training loop."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from functa.training.tasks import Task


def whole(task: Task) -> Callable:
    """(params, batch, key) -> (loss, logs)."""

    def loss(params, batch, key):
        value, logs = task.loss(params, task.sample_inputs(batch, key))
        return value, task.finalize_logs(logs)

    return loss


def train(task: Task, *, steps: int) -> tuple[Any, list[dict[str, float]]]:
    """Params after `steps` updates, and the logs of each step."""
    value_and_grad = jax.value_and_grad(whole(task), has_aux=True)

    @jax.jit
    def step(params, state, batch, key):
        (loss, logs), gradient = value_and_grad(params, batch, key)
        updates, state = task.optimizer.transformation.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, logs | {"loss": loss}

    params = jax.jit(task.init)(jax.random.key(0))
    state, history = task.optimizer.transformation.init(params), []
    for number, batch in enumerate(task.data.train_batches(0, steps)):
        params, state, logs = step(params, state, batch, jax.random.key(number))
        history.append(logs)
    return params, jax.device_get(history)
