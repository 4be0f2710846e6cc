"""Collectives of the compiled programs: what devices send each other."""

import functools

import jax
import numpy as np
import pytest

from functa.configs import cifar10_spatial, digits, imagenet
from functa.plan.compiled import collectives
from functa.plan.programs import Programs
from functa.runtime import mesh
from functa.training.tasks.builders import build_meta_learning
from functa.training.train_step import initial_state


def collectives_of(program):
    return collectives(program.function.lower(*program.arguments).compile())


@pytest.mark.parametrize(
    "config",
    [
        digits.get_config("tiny"),
        cifar10_spatial.get_config("8x8x16,nearest,tiny"),
        cifar10_spatial.get_config("8x8x16,bilinear,tiny"),
        imagenet.get_config("tiny"),  # windows
    ],
    ids=lambda config: config.name,
)
def test_a_step_sends_the_gradient_once_and_scalars(config):
    whole = mesh.make_mesh()
    assert whole.size == 4
    config.meta_learn.batch_size = 32  # more than the logged scalars below
    (found,) = collectives_of(Programs(config).train_step("meta_learn", whole))
    assert found.kind == "all-reduce"
    task = build_meta_learning(config, sources={})
    state = jax.eval_shape(functools.partial(initial_state, task), jax.random.key(0))
    (numbers,) = found.sizes
    params = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    assert params < numbers < params + 20  # the rest are scalars to log


@pytest.mark.parametrize("options", ["8x8x16,nearest,tiny", "8x8x16,bilinear,tiny"])
def test_fitting_sends_nothing(options):
    config, whole = cifar10_spatial.get_config(options), mesh.make_mesh()
    assert collectives_of(Programs(config).encoder(whole)) == []
    task = build_meta_learning(config, sources={})
    params = jax.eval_shape(task.init, jax.random.key(0))
    images = jax.ShapeDtypeStruct((16, *config.data.image_shape), np.uint8)
    evaluate = jax.jit(
        task.metrics.evaluate,
        in_shardings=(mesh.replicated(whole), mesh.batched(whole)),
        out_shardings=mesh.batched(whole),
    )
    assert collectives(evaluate.lower(params, {"image": images}).compile()) == []
