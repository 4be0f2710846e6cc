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

from functa.data.functaset.format import RecordLayout
from functa.fields.fitter import build_fitter
from functa.plan import stub_functaset
from functa.runtime import mesh as mesh_lib
from functa.training.tasks import Task
from functa.training.tasks.builders import (
    build_classification,
    build_generation,
    build_meta_learning,
)
from functa.training.train_step import ALL_FINITE, TrainState, make_step, state_shapes

_KINDS = "all-reduce|all-gather|reduce-scatter|collective-permute|all-to-all|collective-broadcast"


class Collective(NamedTuple):
    """kind: all-reduce, ...; numbers: how many each of its arrays holds."""

    kind: str
    numbers: tuple[int, ...]


class Step(NamedTuple):
    """function: of functa.step.make_step; arguments: descriptions of what it is called with."""

    function: jax.stages.Wrapped
    arguments: tuple[Any, ...]

    @property
    def state(self) -> TrainState:
        return self.arguments[0]


def described_step(config: ConfigDict, stage: str, mesh: Mesh) -> Step:
    """A step of a stage that trains, on a batch of config[stage].batch_size."""
    task, settings = described_task(config, stage), config[stage]
    step = make_step(
        task,
        mesh=mesh,
        seed=0,
        ema_decay=settings.ema_decay,
        micro_batches=settings.micro_batches,
    )
    batch = {
        name: jax.ShapeDtypeStruct((settings.batch_size, *shape), dtype)
        for name, (shape, dtype) in _example(config, stage).items()
    }
    arguments = (
        state_shapes(task, mesh),
        _placed(batch, NamedSharding(mesh, P(task.batch_spec[0]))),
        _placed(ALL_FINITE, mesh_lib.replicated(mesh)),
    )
    return Step(step, arguments)


def described_task(config: ConfigDict, stage: str) -> Task:
    """The task of a stage that trains, without its data."""
    if stage == "meta_learn":
        return build_meta_learning(config, sources={})
    functaset = stub_functaset.functaset(config)
    if stage == "classify":
        return build_classification(config, functaset)
    return build_generation(config, functaset, decode=np.asarray)


def _example(config: ConfigDict, stage: str) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Shape and type of what a batch holds of an example."""
    if stage == "meta_learn":
        return {"image": (tuple(config.data.image_shape), np.uint8)}
    layout = RecordLayout(latent_shape=tuple(config.field.latent_shape), dtype=config.encode.dtype)
    values = layout.unpack([])
    names = [name for name in ("latents", "scale", "label") if name in values]
    return {name: (values[name].shape[1:], values[name].dtype) for name in names}


def training_step(config: ConfigDict, mesh: Mesh) -> jax.stages.Compiled:
    """A step of meta_learn on config.meta_learn.batch_size images."""
    return compiled_step(config, "meta_learn", mesh)


def compiled_step(config: ConfigDict, stage: str, mesh: Mesh) -> jax.stages.Compiled:
    """The program of `described_step`."""
    step = described_step(config, stage, mesh)
    return step.function.lower(*step.arguments).compile()


def described_encoder(config: ConfigDict, mesh: Mesh) -> tuple[jax.stages.Wrapped, tuple[Any, ...]]:
    """The fit of the stage encode, and descriptions of params and config.encode.batch_size images a device."""
    params = jax.eval_shape(described_task(config, "meta_learn").init, jax.random.key(0))
    images = jax.ShapeDtypeStruct(
        (config.encode.batch_size * mesh.size, *config.data.image_shape), np.float32
    )
    arguments = (
        _placed(params, mesh_lib.replicated(mesh)),
        _placed(images, mesh_lib.batched(mesh)),
    )
    return jax.jit(build_fitter(config).encode), arguments


def encoder(config: ConfigDict, mesh: Mesh) -> jax.stages.Compiled:
    """The program of `described_encoder`."""
    fit, arguments = described_encoder(config, mesh)
    return fit.lower(*arguments).compile()


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


def moved_bytes(compiled: jax.stages.Compiled) -> int:
    """That one device reads and writes in its memory, by XLA's own cost analysis: every operand and result of what it
    did not fuse. What is in a loop counts once."""
    return int(_cost(compiled)["bytes accessed"])


def xla_operations(compiled: jax.stages.Compiled) -> int:
    """Operations of one device by XLA's own cost analysis: two a multiply-add, and everything that is none. What is
    in a loop counts once."""
    return int(_cost(compiled)["flops"])


def _cost(compiled: jax.stages.Compiled) -> Any:
    found = compiled.cost_analysis()
    assert found is not None, "this compiler does not tell"
    return found


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
