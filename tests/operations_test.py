import dataclasses

import pytest

from configs import cifar10_spatial
from functa import operations
from functa.field import make_field


@pytest.fixture(scope="module")
def field():
    """The field of the paper: depth 6, width 256, 1x1 map, 8x8x16 latents of 32x32 images."""
    config = cifar10_spatial.get_config("8x8x16,nearest")
    config.field.update(map="linear", upsampling=1)
    assert (config.field.depth, config.field.width) == (6, 256)
    return make_field(config)


def test_a_forward_is_the_published_count(field):
    assert operations.forward(field) == pytest.approx(0.27106e9, rel=1e-4)


def test_the_parts_add_up(field):
    points = 1024
    hidden = 4 * 256 * 256 + 256 * 3
    assert operations.map_operations(field) == 64 * 16 * 5 * 256
    assert operations.shared_layers(field) == points * 2 * 256
    once = points * hidden + 64 * 16 * 5 * 256
    assert operations.fit(field, steps=3) == 5 * once
    assert operations.training(field, steps=3, second_order=True) == 15 * once
    assert operations.training(field, steps=3, second_order=False) == 7 * once
    assert (
        operations.training(field, steps=1, second_order=True) == 3 * once
    )  # no second derivative


@pytest.mark.parametrize(("kind", "cell"), [("conv3x3", 9 * 16 * 1280), ("mlp", 256 * (16 + 1280))])
def test_other_maps(field, kind, cell):
    other = dataclasses.replace(field, map=kind)
    assert operations.map_operations(other) == 64 * cell


def test_sub_cells_have_maps_of_their_own(field):
    other = dataclasses.replace(field, upsampling=2)
    assert operations.map_operations(other) == 4 * operations.map_operations(field)
