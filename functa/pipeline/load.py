"""What the stages of a run have left to use: its field, its classifier and its generator."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from functa.data.functaset.reader import Functaset, open_functaset
from functa.evaluation.features import in_batches
from functa.fields.field import Field, make_field
from functa.models.normalization import Normalization, make_normalization
from functa.runtime import config as config_lib
from functa.runtime import mesh
from functa.training.checkpoint import Checkpoints, digest
from functa.training.tasks import classification, generation, meta_learning

_KEPT = 3  # best checkpoints of a stage
_CLASSIFIED_AT_ONCE = 100  # what a transformer keeps of 256 tokens fits any device


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
    return make_field(config), _restore(directory, task.init, keep=1)


def _restore(directory: epath.Path, init: Callable[[jax.Array], Any], *, keep: int) -> Any:
    """The newest checkpoint of what `init` makes, on every device.

    Raises:
      ValueError: there is none, or its file is damaged.
    """
    place = mesh.replicated(mesh.make_mesh())
    template = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        jax.eval_shape(init, jax.random.key(0)),
    )
    checkpoints = Checkpoints(directory, keep=keep, read_only=True)
    restored = checkpoints.restore(template)
    checkpoints.close()
    if restored is None:
        raise ValueError(f"{directory} holds no complete checkpoint")
    return restored[1]


def load_classifier(
    config: ConfigDict, functaset: Functaset, workdir: epath.PathLike
) -> Callable[[np.ndarray], np.ndarray]:
    """latents [n, i, j, d] -> classes [n] int32, by the classifier of a run whose stage classify is complete.

    Raises:
      ValueError: there is none, its file is damaged, or it was trained on another functaset.
    """
    path = epath.Path(workdir) / "classify" / "metrics.json"
    if not path.exists():
        raise ValueError(f"{path} does not exist: the stage classify of {workdir} is not complete")
    _same_functaset("classifier", path, functaset)
    task = classification.make(config, functaset, process_index=0, process_count=1)
    params = _restore(epath.Path(workdir) / "classify" / "best", task.init, keep=_KEPT)
    params, evaluate = mesh.to_host(params), jax.jit(task.evaluate)

    def some_classes(latents: np.ndarray) -> np.ndarray:
        batch = {"latents": latents, "label": np.zeros(len(latents), np.int32)}
        return evaluate(params, batch)["prediction"]

    return functools.partial(in_batches, some_classes, size=_CLASSIFIED_AT_ONCE)


def _same_functaset(what: str, metrics: epath.Path, functaset: Functaset) -> None:
    made_from = config_lib.read_json(metrics).get("functaset_digest", "(not recorded)")
    if made_from != functaset.manifest.digest:
        raise ValueError(
            f"the {what} of {metrics.parent.parent} was trained on the functaset {made_from}, {functaset.path} is "
            f"{functaset.manifest.digest}: train the {what} again, or bring its functaset back"
        )


class Generator(NamedTuple):
    """A generator and what its latents are latents of.

    Attributes:
      config: of the run.
      field, field_params: as of `load_field`, on the host.
      functaset: that it was trained on.
      normalization: of its latents.
      params: of the model config.generate.model, on the host.
    """

    config: ConfigDict
    field: Field
    field_params: Any
    functaset: Functaset
    normalization: Normalization
    params: Any


def load_generator(workdir: epath.PathLike) -> Generator:
    """The best generator of a run whose stage generate is complete.

    Raises:
      ValueError: there is none, its file is damaged, or field, functaset and generator were not made from one
        another (names both sides).
    """
    run = epath.Path(workdir)
    config = config_lib.load(run)
    metrics = run / "generate" / "metrics.json"
    if not metrics.exists():
        raise ValueError(f"{metrics} does not exist: the stage generate of {run} is not complete")
    field, field_params = load_field(run)
    field_params = mesh.to_host(field_params)
    functaset = open_functaset(run / "functaset", field_digest=digest(field_params))
    _same_functaset("generator", metrics, functaset)
    try:
        problems = generation.check(config)
    except AttributeError as error:
        raise ValueError(
            f"{run / 'config.json'} has not the keys of this version of functa ({error}); use the version that wrote "
            "it, or train again"
        ) from error
    if problems:
        raise ValueError("\n".join(problems))
    module = generation.make_model(config)
    init = generation.make_init(module, latent_shape=tuple(config.field.latent_shape))
    params = _restore(run / "generate" / "best", init, keep=_KEPT)
    normalization = make_normalization(functaset, kind=config.generate.normalization)
    return Generator(config, field, field_params, functaset, normalization, mesh.to_host(params))
