"""What compiled programs cost: memory of a device, what devices send each other.

Nothing is run and no array is made: programs are compiled ahead of time, for the devices of this machine or
for those of a described topology that is not there.
"""

import math
import re
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, Sharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from functa import fitting
from functa import mesh as mesh_lib
from functa.step import NONE_BAD, described_state, make_step
from functa.tasks import meta_learning

_KINDS = "all-reduce|all-gather|reduce-scatter|collective-permute|all-to-all|collective-broadcast"


class Collective(NamedTuple):
    """kind: all-reduce, ...; numbers: how many each of its arrays holds."""

    kind: str
    numbers: tuple[int, ...]


def training_step(config: ConfigDict, mesh: Mesh) -> jax.stages.Compiled:
    """A step of meta_learn on config.meta_learn.batch_size images."""
    task = meta_learning.make(config, {}, process_index=0, process_count=1)
    images = jax.ShapeDtypeStruct(
        (config.meta_learn.batch_size, *config.data.image_shape), np.uint8
    )
    settings = config.meta_learn
    step = make_step(
        task,
        mesh=mesh,
        seed=0,
        ema_decay=settings.ema_decay,
        micro_batches=settings.micro_batches,
    ).lower(
        described_state(task, mesh),
        _placed({"image": images}, NamedSharding(mesh, P(task.spec[0]))),
        _placed(NONE_BAD, mesh_lib.replicated(mesh)),
    )
    return step.compile()


def encoder(config: ConfigDict, mesh: Mesh) -> jax.stages.Compiled:
    """The fit of the stage encode, config.encode.batch_size images a device."""
    task = meta_learning.make(config, {}, process_index=0, process_count=1)
    params = jax.eval_shape(task.init, jax.random.key(0))
    images = jax.ShapeDtypeStruct(
        (config.encode.batch_size * mesh.size, *config.data.image_shape), np.float32
    )
    fit = fitting.make_encoder(config).lower(
        _placed(params, mesh_lib.replicated(mesh)), _placed(images, mesh_lib.batched(mesh))
    )
    return fit.compile()


def collectives(compiled: jax.stages.Compiled) -> list[Collective]:
    """Every collective of a program, in the order of its text."""
    found = re.findall(rf"= (\(.*?\)|\S+) ({_KINDS})(?:-start)?\(", compiled.as_text() or "")
    return [
        Collective(
            kind, tuple(math.prod(map(int, filter(None, dims.split(",")))) for dims in arrays)
        )
        for shape, kind in found
        for arrays in [re.findall(r"\w\[([\d,]*)\]", shape)]
    ]


def memory(compiled: jax.stages.Compiled) -> dict[str, int]:
    """Bytes on one device: arguments, outputs that are no arguments used again, temporaries."""
    sizes = compiled.memory_analysis()
    assert sizes is not None, "this compiler does not tell"
    return {
        "argument_bytes": sizes.argument_size_in_bytes,
        "output_bytes": sizes.output_size_in_bytes - sizes.alias_size_in_bytes,
        "temporary_bytes": sizes.temp_size_in_bytes,
    }


def _placed(tree: Any, sharding: Sharding) -> Any:
    """Descriptions of arrays, and where they lie."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree
    )
