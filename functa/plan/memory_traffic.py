"""A device's share of a stage on a mesh that is not there: what it holds, what it sends, what its program needs."""

import functools
import math
from typing import Any, NamedTuple

import jax
from jax.sharding import AbstractMesh
from ml_collections import ConfigDict

from functa.plan import xla_stats
from functa.runtime import mesh as mesh_lib
from functa.training.train_step import TrainState, initial_state

_LOGGED = 20  # numbers that a step adds up beside the gradient, about


class Share(NamedTuple):
    """Of one device, in a stage that trains.

    Attributes:
      parameters: shapes of what is trained, all devices together.
      state_bytes: it holds of parameters, their average and the optimiser; whole_bytes: all devices together.
      sent_bytes: it sends in a step, in as many collectives, with rings.
    """

    parameters: list[tuple[int, ...]]
    state_bytes: int
    whole_bytes: int
    sent_bytes: float
    collectives: int


class Program(NamedTuple):
    """What XLA says of a compiled program, of one device: see compiled.memory, compiled.moved_bytes and
    compiled.collectives."""

    memory: dict[str, int]
    moved_bytes: int
    collectives: list[xla_stats.Collective]

    @classmethod
    def of(cls, found: jax.stages.Compiled) -> "Program":
        return cls(
            xla_stats.memory(found), xla_stats.moved_bytes(found), xla_stats.collectives(found)
        )

    @property
    def peak_bytes(self) -> int:
        return sum(self.memory.values())


def described_mesh(config: ConfigDict, devices: int) -> AbstractMesh:
    """The mesh of config.mesh over so many devices.

    Raises:
      ValueError: it does not make them up.
    """
    sizes = mesh_lib.axis_sizes(devices, **config.mesh)
    return AbstractMesh(tuple(sizes.values()), tuple(sizes))


def of_stage(config: ConfigDict, stage: str, mesh: AbstractMesh) -> Share:
    """The share of a device in a step of meta_learn, classify or generate.

    The gradient of what all hold travels in one all-reduce; of what lies over fsdp a part is gathered, scattered,
    and added up with the devices that hold the same part. What XLA sends for an optimiser of sharded matrices
    (Muon) is not counted.
    """
    task = xla_stats.described_task(config, stage)
    state: TrainState = jax.eval_shape(functools.partial(initial_state, task), jax.random.key(0))
    fsdp = mesh.shape["fsdp"] if task.shard_params else 1

    def shared(tree: Any) -> list[tuple[int, bool]]:
        """(bytes, whether they lie over fsdp) of every array."""
        axes = jax.tree.leaves(mesh_lib.sharded_axes(mesh, tree))
        leaves = jax.tree.leaves(tree)
        return [
            (leaf.size * leaf.dtype.itemsize, fsdp > 1 and axis >= 0)
            for leaf, axis in zip(leaves, axes, strict=True)
        ]

    arrays = shared(state)
    whole = 4 * _LOGGED + sum(size for size, cut in shared(state.params) if not cut)
    parts = sum(size for size, cut in shared(state.params) if cut)
    replicas = mesh.size // fsdp
    sent = 2 * (mesh.size - 1) / mesh.size * whole
    sent += 2 * (fsdp - 1) / fsdp * parts + 2 * (replicas - 1) / replicas * parts / fsdp
    return Share(
        parameters=[leaf.shape for leaf in jax.tree.leaves(state.params)],
        state_bytes=sum(size // fsdp if cut else size for size, cut in arrays),
        whole_bytes=sum(size for size, _ in arrays),
        sent_bytes=sent,
        collectives=(3 if parts else 1) if mesh.size > 1 else 0,
    )


def simulated(mesh: AbstractMesh) -> dict[str, int]:
    """Axes of the smallest mesh on which a device's program is what it is on `mesh`: a longer axis of data
    changes how many others have the same share."""
    sizes = dict(mesh.shape)
    return sizes | {"data": min(sizes["data"], 2)}


def program(config: ConfigDict, stage: str, mesh: AbstractMesh) -> Program:
    """Compiles a device's program of a stage, encode among them, for simulated CPU devices.

    Raises:
      ValueError: this process has fewer devices than `simulated` asks for.
    """
    sizes = simulated(mesh)
    count = math.prod(sizes.values())
    if len(jax.devices()) < count:
        raise ValueError(f"{count} simulated devices are needed, there are {len(jax.devices())}")
    small = mesh_lib.make_mesh(jax.devices()[:count], **sizes)
    if stage == "encode":
        return Program.of(xla_stats.encoder(config, small))
    config = config.copy_and_resolve_references()
    config[stage].batch_size = config[stage].batch_size * count // mesh.size
    return Program.of(xla_stats.compiled_step(config, stage, small))
