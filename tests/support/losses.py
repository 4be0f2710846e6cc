"""The loss of a task as one function of a whole batch, as on one device."""

from collections.abc import Callable

from functa.training.tasks import Task


def whole(task: Task) -> Callable:
    """(params, batch, key) -> (loss, logs)."""

    def loss(params, batch, key):
        value, logs = task.loss(params, task.sample_inputs(batch, key))
        return value, task.finalize_logs(logs)

    return loss
