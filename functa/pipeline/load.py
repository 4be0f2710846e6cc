"""Loads the results of a run: its field, its classifier and its generator."""

import functools
from collections.abc import Callable
from typing import Any, cast

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from functa.data.functaset.reader import Functaset, open_functaset
from functa.diffusion.generator import build_generator
from functa.diffusion.trained_generator import TrainedGenerator
from functa.fields.field import Field
from functa.fields.fitter import Fitter, build_fitter
from functa.models.classifier import make_classifier
from functa.models.normalization import make_normalization
from functa.runtime import config as config_lib
from functa.runtime import mesh
from functa.runtime.batching import apply_in_batches
from functa.training.checkpoint import Checkpoints, digest
from functa.training.tasks import classification

_BEST_KEPT = 3  # best checkpoints of a stage
_CLASSIFIER_BATCH = 100  # activations of a transformer over 256 tokens fit any device


def load_fitter(workdir: epath.PathLike) -> tuple[Fitter, Any]:
    """(fitter, its params) of a run whose stage meta_learn is complete.

    Raises:
      ValueError: the stage is not complete, a file is damaged, or another version of functa wrote the
        config.
    """
    config = config_lib.load(workdir)
    try:
        fitter = build_fitter(config)
    except (AttributeError, TypeError) as error:
        raise _other_version(workdir, error) from error
    return fitter, load_field_params(workdir, fitter)


def load_field(workdir: epath.PathLike) -> tuple[Field, Any]:
    """(field, params of its fitter); see `load_fitter`."""
    fitter, params = load_fitter(workdir)
    return fitter.field, params


def load_field_params(workdir: epath.PathLike, fitter: Fitter) -> Any:
    """The params of `fitter`, trained by the stage meta_learn of a run.

    Raises:
      ValueError: the stage is not complete, or a file is damaged.
    """
    directory = epath.Path(workdir) / "meta_learn" / "field"
    metrics = epath.Path(workdir) / "meta_learn" / "metrics.json"
    for path in (metrics, directory):  # the metrics are written last
        if not path.exists():
            raise ValueError(
                f"{path} does not exist: the stage meta_learn of {workdir} is not complete"
            )
    return _restore(directory, fitter.param_shapes(), keep=1)


def _other_version(workdir: epath.PathLike, error: Exception) -> ValueError:
    return ValueError(
        f"{epath.Path(workdir) / 'config.json'} does not have the keys of this version of functa ({error}); use the "
        "version that wrote it, or train again"
    )


def _restore(directory: epath.Path, shapes: Any, *, keep: int) -> Any:
    """The newest checkpoint in `directory`, replicated over all devices.

    Args:
      shapes: pytree of ShapeDtypeStruct.
    Raises:
      ValueError: there is no checkpoint, or its file is damaged.
    """
    replicated = mesh.replicated(mesh.make_mesh())
    template = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated), shapes
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
    """Returns latents [n, i, j, d] -> logits [n, classes] float32, by the classifier of a run.

    Raises:
      ValueError: the stage classify is not complete, a file is damaged, or the classifier was trained
        on another functaset.
    """
    path = epath.Path(workdir) / "classify" / "metrics.json"
    if not path.exists():
        raise ValueError(f"{path} does not exist: the stage classify of {workdir} is not complete")
    _require_same_functaset("classifier", path, functaset)
    module = make_classifier(num_classes=config.data.num_classes, **config.classify.model)
    normalize = make_normalization(functaset, kind=config.classify.normalization).normalize
    init = classification.make_init(module, latent_shape=tuple(functaset.manifest.latent_shape))
    shapes = jax.eval_shape(init, jax.random.key(0))
    params = _restore(epath.Path(workdir) / "classify" / "best", shapes, keep=_BEST_KEPT)
    params = mesh.to_host(params)

    @jax.jit
    def logits(latents: jax.Array) -> jax.Array:
        return cast(jax.Array, module.apply({"params": params}, normalize(latents), train=False))

    return functools.partial(apply_in_batches, logits, batch_size=_CLASSIFIER_BATCH)


def _require_same_functaset(model: str, metrics: epath.Path, functaset: Functaset) -> None:
    recorded = config_lib.read_json(metrics).get("functaset_digest")
    if recorded != functaset.manifest.digest:
        raise ValueError(
            f"the {model} of {metrics.parent.parent} was trained on the functaset {recorded}, but {functaset.path} "
            f"is {functaset.manifest.digest}: train the {model} again, or restore its functaset"
        )


def load_generator(workdir: epath.PathLike) -> TrainedGenerator:
    """The best generator of a run whose stage generate is complete.

    Raises:
      ValueError: the stage is not complete, a file is damaged, or field, functaset and generator do not
        belong together.
    """
    run = epath.Path(workdir)
    config = config_lib.load(run)
    metrics = run / "generate" / "metrics.json"
    if not metrics.exists():
        raise ValueError(f"{metrics} does not exist: the stage generate of {run} is not complete")
    fitter, field_params = load_fitter(run)
    field_params = mesh.to_host(field_params)
    functaset = open_functaset(run / "functaset", field_digest=digest(field_params))
    _require_same_functaset("generator", metrics, functaset)
    try:
        generator = build_generator(config.generate, functaset, num_classes=config.data.num_classes)
    except (AttributeError, KeyError, TypeError) as error:
        raise _other_version(run, error) from error
    shapes = jax.eval_shape(generator.init, jax.random.key(0))
    return TrainedGenerator(
        generator=generator,
        params=mesh.to_host(_restore(run / "generate" / "best", shapes, keep=_BEST_KEPT)),
        fitter=fitter,
        field_params=field_params,
        functaset=functaset,
    )
