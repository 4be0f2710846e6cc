"""What the stages of a run have left to use: its field and its classifier."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from functa import config as config_lib
from functa import mesh as mesh_lib
from functa.checkpoint import Checkpoints
from functa.data.functaset import Functaset
from functa.field import Field, make_field
from functa.tasks import classification, meta_learning


def load_field(workdir: epath.PathLike) -> tuple[Field, Any]:
    """(field, params of the task meta_learn) of a run whose stage meta_learn is complete.

    Raises:
      ValueError: there is none, its file is damaged, or another version of functa wrote the config.
    """
    config = config_lib.load(workdir)
    directory = epath.Path(workdir) / "meta_learn" / "field"
    metrics = epath.Path(workdir) / "meta_learn" / "metrics.json"
    for needed in (metrics, directory):  # the metrics are written last
        if not needed.exists():
            raise ValueError(
                f"{needed} does not exist: the stage meta_learn of {workdir} is not complete"
            )
    try:
        task = meta_learning.make(config, {}, process_index=0, process_count=1)
    except AttributeError as error:
        raise ValueError(
            f"{epath.Path(workdir) / 'config.json'} has not the keys of this version of functa "
            f"({error}); use the version that wrote it, or train again"
        ) from error
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    sharding = mesh_lib.replicated(mesh_lib.make_mesh())
    template = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes
    )
    checkpoints = Checkpoints(directory, keep=1, read_only=True)
    restored = checkpoints.restore(template)
    checkpoints.close()
    if restored is None:
        raise ValueError(f"{directory} holds no complete checkpoint")
    return make_field(config), restored[1]


def load_classifier(
    config: ConfigDict, functaset: Functaset, workdir: epath.PathLike
) -> Callable[[np.ndarray], np.ndarray]:
    """latents [n, i, j, d] -> classes [n] int32, by the classifier of a run whose stage classify is complete.

    Raises:
      ValueError: there is none, or its file is damaged.
    """
    task = classification.make(config, functaset, process_index=0, process_count=1)
    checkpoints = Checkpoints(epath.Path(workdir) / "classify" / "best", keep=3, read_only=True)
    place = mesh_lib.replicated(mesh_lib.make_mesh())
    template = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        jax.eval_shape(task.init, jax.random.key(0)),
    )
    restored = checkpoints.restore(template)
    checkpoints.close()
    if restored is None:
        raise ValueError(f"{checkpoints.directory} holds no complete checkpoint")
    params, evaluate = mesh_lib.to_host(restored[1]), jax.jit(task.evaluate)

    def classes(latents: np.ndarray) -> np.ndarray:
        batch = {"latents": latents, "label": np.zeros(len(latents), np.int32)}
        return np.asarray(evaluate(params, batch)["prediction"])

    return classes
