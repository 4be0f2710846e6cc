"""What a run has to explore, opened once."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from etils import epath
from ml_collections import ConfigDict

from functa.data.functaset.reader import Functaset, open_functaset
from functa.diffusion.trained_generator import TrainedGenerator
from functa.explore.originals import Originals
from functa.fields.field import Field
from functa.pipeline import load
from functa.runtime import config as config_lib
from functa.runtime import mesh
from functa.training.checkpoint import digest


class Opened(NamedTuple):
    """Attributes:
    config: of the run, as it was frozen.
    field, field_params: as of trained.load_field, on the host.
    functaset: that this field made.
    generator: its params on a device; None where there is none to use.
    no_generator: why not, a sentence; "" where there is one.
    originals: the images behind the functaset, as far as they are there.
    """

    config: ConfigDict
    field: Field
    field_params: Any
    functaset: Functaset
    generator: TrainedGenerator | None
    no_generator: str
    originals: Originals


def open_run(workdir: epath.PathLike, *, data_dir: str | None) -> Opened:
    """Opens field and functaset, and generator and images where they are there.

    Args:
      data_dir: where the images lie now; None: where the config says.
    Raises:
      ValueError: no such folder, no run, no field or functaset, or a functaset of another field.
    """
    run = epath.Path(workdir)
    if not run.is_dir():
        raise ValueError(f"there is no folder {run}")
    config = config_lib.load(run)
    field, params = load.load_field(run)
    params = mesh.to_host(params)
    functaset = open_functaset(run / "functaset", field_digest=digest(params))
    generator, why = None, ""
    try:
        loaded = load.load_generator(run)
        # A request should not have to bring them there.
        generator = dataclasses.replace(loaded, params=jax.tree.map(jnp.asarray, loaded.params))
    except (
        ValueError
    ) as error:  # not trained yet, damaged, or of another functaset: all else still works
        why = str(error)
    originals = Originals(config, data_dir=data_dir)
    return Opened(config, field, params, functaset, generator, why, originals)
