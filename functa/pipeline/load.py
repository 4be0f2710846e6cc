"""Loads the results of a run: its field, its classifier and its generator."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, cast

import jax
import numpy as np
from etils import epath
from flax import linen as nn

from functa.data.functaset import reader
from functa.data.functaset.reader import Functaset
from functa.diffusion.generator import build_generator
from functa.diffusion.trained_generator import ERROR_SIGMAS, TrainedGenerator
from functa.fields.field import Field
from functa.fields.fitter import Fitter, build_fitter
from functa.models.classifier import make_classifier
from functa.models.normalization import make_normalization
from functa.pipeline import released
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
    with _config_errors(workdir):
        fitter = build_fitter(config)
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
    _completed_metrics(workdir, "meta_learn")
    return _restore(workdir, "meta_learn/field", fitter.param_shapes(), keep=1)


def load_functaset(workdir: epath.PathLike, field_params: Any) -> Functaset:
    """The functaset of a run; of a released model its manifest only, which has the statistics.

    Raises:
      ValueError: there is no complete functaset, or another field made it.
    """
    path, field_digest = epath.Path(workdir) / "functaset", digest(field_params)
    if not released.is_model(workdir):
        return reader.open_functaset(path, field_digest=field_digest)
    manifest = reader.read_manifest(path)
    if problem := reader.field_problem(path, manifest, field_digest):
        raise ValueError(problem)
    return Functaset(path=path, manifest=manifest)


def load_classifier(
    functaset: Functaset, workdir: epath.PathLike
) -> Callable[[np.ndarray], np.ndarray]:
    """Returns latents [n, i, j, d] -> logits [n, classes] float32, by the classifier of a run.

    Raises:
      ValueError: the stage classify is not complete, a file is damaged, or the classifier was trained
        on another functaset.
    """
    config = config_lib.load(workdir)
    module, params = load_classifier_params(functaset, workdir)
    normalize = make_normalization(functaset, kind=config.classify.normalization).normalize

    @jax.jit
    def logits(latents: jax.Array) -> jax.Array:
        return cast(jax.Array, module.apply({"params": params}, normalize(latents), train=False))

    return functools.partial(apply_in_batches, logits, batch_size=_CLASSIFIER_BATCH)


def load_classifier_params(functaset: Functaset, workdir: epath.PathLike) -> tuple[nn.Module, Any]:
    """(network, its params) of the classifier; see `load_classifier`."""
    config = config_lib.load(workdir)
    _require_same_functaset(workdir, "classify", functaset)
    module = make_classifier(num_classes=config.data.num_classes, **config.classify.model)
    init = classification.make_init(module, latent_shape=tuple(functaset.manifest.latent_shape))
    return module, _restore_best(workdir, "classify", init)


def load_generator(workdir: epath.PathLike) -> TrainedGenerator:
    """The best generator of a run whose stage generate is complete.

    Raises:
      ValueError: the stage is not complete, a file is damaged, or field, functaset and generator do not
        belong together.
    """
    config = config_lib.load(workdir)
    _completed_metrics(workdir, "generate")
    fitter, field_params = load_fitter(workdir)
    field_params = mesh.to_host(field_params)
    functaset = load_functaset(workdir, field_params)
    _require_same_functaset(workdir, "generate", functaset)
    with _config_errors(workdir):
        generator = build_generator(config.generate, functaset, num_classes=config.data.num_classes)
    return TrainedGenerator(
        generator=generator,
        params=_restore_best(workdir, "generate", generator.init),
        fitter=fitter,
        field_params=field_params,
        functaset=functaset,
        known_denoising_error=_known_denoising_error(workdir),
    )


@contextlib.contextmanager
def _config_errors(workdir: epath.PathLike) -> Iterator[None]:
    """Reports a config without the keys that the body reads."""
    try:
        yield
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{epath.Path(workdir) / 'config.json'} does not have the keys of this version of functa ({error}); "
            "use the version that wrote it, or train again"
        ) from error


def _completed_metrics(workdir: epath.PathLike, stage: str) -> dict[str, Any]:
    """Metrics of a stage, which are written last."""
    path = epath.Path(workdir) / stage / "metrics.json"
    if not path.exists():
        raise ValueError(f"{path} does not exist: the stage {stage} of {workdir} is not complete")
    return config_lib.read_json(path)


def _require_same_functaset(workdir: epath.PathLike, stage: str, functaset: Functaset) -> None:
    recorded = _completed_metrics(workdir, stage).get("functaset_digest")
    if recorded != functaset.manifest.digest:
        raise ValueError(
            f"the stage {stage} of {workdir} was trained on the functaset {recorded}, but {functaset.path} is "
            f"{functaset.manifest.digest}: run the stage again, or restore its functaset"
        )


def _known_denoising_error(workdir: epath.PathLike) -> np.ndarray | None:
    if not released.is_model(workdir):
        return None
    shapes = [jax.ShapeDtypeStruct(ERROR_SIGMAS.shape, np.float32)]
    return released.read_arrays(epath.Path(workdir), "generate/denoising_error.npz", shapes)[0]


def _restore_best(workdir: epath.PathLike, stage: str, init: Callable[[jax.Array], Any]) -> Any:
    """Params of the best checkpoint of a stage, on the host."""
    shapes = jax.eval_shape(init, jax.random.key(0))
    return mesh.to_host(_restore(workdir, f"{stage}/best", shapes, keep=_BEST_KEPT))


def _restore(workdir: epath.PathLike, name: str, shapes: Any, *, keep: int) -> Any:
    """The newest checkpoint in workdir/name, replicated over all devices."""
    workdir = epath.Path(workdir)
    replicated = mesh.replicated(mesh.make_mesh())
    if released.is_model(workdir):
        return jax.device_put(released.read_arrays(workdir, f"{name}.npz", shapes), replicated)
    template = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated), shapes
    )
    checkpoints = Checkpoints(workdir / name, keep=keep, read_only=True)
    restored = checkpoints.restore(template)
    checkpoints.close()
    if restored is None:
        raise ValueError(f"{workdir / name} holds no complete checkpoint")
    return restored[1]
