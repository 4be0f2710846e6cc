"""What devices send each other, read from the compiled programs."""

import functools
import math
import re

import jax
import numpy as np
import pytest

from configs import cifar10_spatial, digits
from functa import fitting, mesh
from functa.step import NONE_BAD, initial_state, make_step
from functa.tasks import meta_learning

_OPS = "all-reduce|all-gather|reduce-scatter|collective-permute|all-to-all|collective-broadcast"


def collectives(compiled) -> list[tuple[str, list[int]]]:
    """(kind, numbers in each of its arrays) of every collective of a program."""
    found = re.findall(rf"= (\(.*?\)|\S+) ({_OPS})(?:-start)?\(", compiled.as_text())
    return [
        (
            kind,
            [
                math.prod(map(int, filter(None, dims.split(","))))
                for dims in re.findall(r"\[([\d,]*)\]", shape)
            ],
        )
        for shape, kind in found
    ]


def described(tree, sharding):
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree
    )


@pytest.mark.parametrize("batch_size", [16, 32])
@pytest.mark.parametrize(
    "config",
    [
        digits.get_config("tiny"),
        cifar10_spatial.get_config("8x8x16,nearest,tiny"),
        cifar10_spatial.get_config("8x8x16,bilinear,tiny"),
    ],
    ids=lambda config: config.name,
)
def test_a_step_sends_the_gradient_once_and_scalars(config, batch_size):
    task = meta_learning.make(config, {}, process_index=0, process_count=1)
    whole = mesh.make_mesh()
    assert whole.size == 4
    state = jax.eval_shape(functools.partial(initial_state, task), jax.random.key(0))
    images = jax.ShapeDtypeStruct((batch_size, *config.data.image_shape), np.uint8)
    step = make_step(task, mesh=whole, seed=0, ema_decay=0.0).lower(
        described(state, mesh.replicated(whole)),
        described({"image": images}, mesh.batched(whole)),
        described(NONE_BAD, mesh.replicated(whole)),
    )
    found = collectives(step.compile())
    assert [kind for kind, _ in found] == ["all-reduce"]
    sent = sorted(size for size in found[0][1] if size > 1)
    params = sorted(leaf.size for leaf in jax.tree.leaves(state.params) if leaf.size > 1)
    assert sent == params


@pytest.mark.parametrize("options", ["8x8x16,nearest,tiny", "8x8x16,bilinear,tiny"])
def test_fitting_sends_nothing(options):
    config = cifar10_spatial.get_config(options)
    task = meta_learning.make(config, {}, process_index=0, process_count=1)
    whole = mesh.make_mesh()
    params = described(jax.eval_shape(task.init, jax.random.key(0)), mesh.replicated(whole))
    images = jax.ShapeDtypeStruct((16, *config.data.image_shape), np.float32)
    images = described(images, mesh.batched(whole))
    assert collectives(fitting.make_encoder(config).lower(params, images).compile()) == []
    batch = {"image": jax.ShapeDtypeStruct(images.shape, np.uint8, sharding=images.sharding)}
    evaluate = jax.jit(task.evaluate, out_shardings=mesh.batched(whole))
    assert collectives(evaluate.lower(params, batch).compile()) == []
