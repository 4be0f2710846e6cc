import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import digits
from functa.fields import coordinates
from functa.fields.field import Field
from functa.fields.fitter import build_field
from functa.fields.image_parts import window_field


def make(**changes):
    settings = dict(
        image_shape=(8, 8, 3),
        latent_shape=(2, 2, 4),
        interpolation="nearest",
        coordinates="local",
        map="linear",
        upsampling=1,
        modulation="shift",
        width=6,
        depth=3,
        w0=10.0,
    )
    return Field(**(settings | changes))


def with_neighbours(params):
    """The parameters with a map of random weights: conv3x3 begins without those of neighbours."""
    weight = params["map"]["weight"]
    noise = jax.random.normal(jax.random.key(7), weight.shape) / len(weight) ** 0.5
    return params | {"map": params["map"] | {"weight": noise}}


def slow_field(field, params, latents, shape):
    """One pixel at a time, in float64, as the paper writes it."""
    tree = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    i, j, d = field.latent_shape
    weights = tree["map"]
    u, m = field.upsampling, field.num_modulations
    modulations = np.zeros((i, j, u * u * m))
    for row, column in np.ndindex(i, j):
        if field.map == "linear":
            modulations[row, column] = latents[row, column] @ weights["weight"]
        elif field.map == "mlp":
            hidden = latents[row, column] @ weights["hidden_weight"] + weights["hidden_bias"]
            gelu = hidden / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (hidden + 0.044715 * hidden**3)))
            modulations[row, column] = gelu @ weights["weight"]
        else:
            for a, b in np.ndindex(3, 3):
                r, c = row + a - 1, column + b - 1
                if 0 <= r < i and 0 <= c < j:
                    kernel = weights["weight"].reshape(3, 3, field.latent_shape[2], -1)
                    modulations[row, column] += latents[r, c] @ kernel[a, b]
    fine = np.zeros((i * u, j * u, m))
    for row, column in np.ndindex(i * u, j * u):
        part = row % u * u + column % u
        fine[row, column] = modulations[row // u, column // u, part * m : (part + 1) * m]
    values = np.zeros((*shape, field.image_shape[2]))
    rows, columns = coordinates.pixel_centers(shape[0]), coordinates.pixel_centers(shape[1])
    features = coordinates.grid_features(
        field.coordinates, rows, columns, cells=(i, j), pixels=field.image_shape[:2]
    )
    for row, column in np.ndindex(*shape):
        y, x = rows[row] * i * u, columns[column] * j * u
        if field.interpolation == "nearest":
            at = fine[int(y), int(x)]
        else:
            y, x = np.clip(y - 0.5, 0, i * u - 1), np.clip(x - 0.5, 0, j * u - 1)
            top, left = min(int(y), max(i * u - 2, 0)), min(int(x), max(j * u - 2, 0))
            at = 0
            for a, b in np.ndindex(min(2, i * u), min(2, j * u)):
                weight = (1 - abs(y - top - a)) * (1 - abs(x - left - b))
                at = at + weight * fine[top + a, left + b]
        shifts, scales = at, np.zeros_like(at)
        if field.modulation == "shift_scale":
            shifts, scales = np.split(at, 2)
        h = features[row, column].astype(np.float64)
        net = tree["siren"]
        for layer in range(field.depth - 1):
            part = slice(layer * field.width, (layer + 1) * field.width)
            inside = h @ net["weights"][layer] + net["biases"][layer]
            h = np.sin(inside * (1 + scales[part]) + shifts[part])
        values[row, column] = h @ net["weights"][-1] / 10 + net["biases"][-1] + 0.5
    return values


COMBINATIONS = [
    *itertools.product(("nearest", "bilinear"), ("local", "periodic"), ("linear",), ("shift",)),
    ("nearest", "global", "conv3x3", "shift"),
    ("bilinear", "binary", "conv3x3", "shift_scale"),
    ("nearest", "binary", "mlp", "shift_scale"),
    ("bilinear", "global", "mlp", "shift"),
]


@pytest.mark.parametrize("upsampling", [1, 2])
@pytest.mark.parametrize(("interpolation", "coords_kind", "map_kind", "modulation"), COMBINATIONS)
def test_values_against_one_pixel_at_a_time(
    interpolation, coords_kind, map_kind, modulation, upsampling
):
    field = make(
        interpolation=interpolation,
        coordinates=coords_kind,
        map=map_kind,
        modulation=modulation,
        upsampling=upsampling,
    )
    params = with_neighbours(field.init(jax.random.key(0)))
    params["siren"]["biases"][-1] = jnp.float32([0.1, -0.2, 0.3])
    latents = jax.random.normal(jax.random.key(1), (2, *field.latent_shape))
    for shape in ((8, 8), (12, 16), (7, 9)):  # as trained, whole cells, cells cut by pixels
        fast = jax.jit(field, static_argnums=2)(params, latents, shape)
        assert fast.shape == (2, *shape, 3)
        slow = slow_field(field, params, np.asarray(latents[1], np.float64), shape)
        np.testing.assert_allclose(fast[1], slow, atol=3e-6)


def test_published_size():
    """286,467 parameters at depth 6, width 256, 8x8x16 (REFERENCES.md); 1,024 more are inner rates of shape full."""
    field = make(image_shape=(32, 32, 3), latent_shape=(8, 8, 16), width=256, depth=6)
    shapes = jax.eval_shape(field.init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 286_467 - 5 * 256


@pytest.mark.parametrize("map_kind", ["linear", "conv3x3", "mlp"])
def test_sub_cells_begin_as_one(map_kind):
    latents = jax.random.normal(jax.random.key(1), (1, 2, 2, 4))
    whole, parts = (
        field(field.init(jax.random.key(0)), latents)
        for field in (make(map=map_kind), make(map=map_kind, upsampling=2))
    )
    np.testing.assert_allclose(parts, whole, atol=1e-6)


@pytest.mark.parametrize(
    ("upsampling", "shape", "place"), [(1, (1, 16), (0, 5)), (2, (4, 4), (0, 3))]
)
def test_layout_round_trip(upsampling, shape, place):
    images = np.random.default_rng(0).random((2, 8, 8, 3), np.float32)
    field = make(upsampling=upsampling)
    layout = field.to_layout(jnp.asarray(images))
    assert layout.shape == (2, 2, 2, *shape, 3)
    np.testing.assert_array_equal(layout[(1, 1, 0, *place)], images[1, 5, 1])
    np.testing.assert_array_equal(field.to_image(layout, (8, 8)), images)


def test_a_cell_alone_is_the_cell_in_the_image():
    field = make(map="mlp", upsampling=2)
    params = with_neighbours(field.init(jax.random.key(0)))
    latents = jax.random.normal(jax.random.key(1), (1, 2, 2, 4))
    whole = field(params, latents)
    cell = window_field(field, 1)(params, latents[:, 1:, :1])
    np.testing.assert_allclose(cell[0], whole[0, 4:, :4], atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "reach"),
    [
        ({"map": "conv3x3", "upsampling": 2}, 1),
        ({"interpolation": "bilinear", "coordinates": "periodic"}, 1),
        ({"interpolation": "bilinear", "coordinates": "periodic", "map": "conv3x3"}, 2),
    ],
    ids=str,
)
def test_a_window_is_the_window_in_the_image_but_for_what_its_border_hides(changes, reach):
    field = make(image_shape=(32, 32, 3), latent_shape=(8, 8, 4), **changes)
    params = with_neighbours(field.init(jax.random.key(0)))
    latents = jax.random.normal(jax.random.key(1), (1, 8, 8, 4))
    whole = field(params, latents)[:, 4:28, 8:32]
    window = window_field(field, 6)(params, latents[:, 1:7, 2:8])
    hidden = 4 * reach  # pixels; on the right the border of the window is that of the image
    inside = (slice(None), slice(hidden, -hidden), slice(hidden, None))
    np.testing.assert_allclose(window[inside], whole[inside], atol=1e-5)
    assert np.abs(window - whole).max() > 1e-3


@pytest.mark.parametrize(
    ("changes", "side", "message"),
    [
        (
            {"interpolation": "bilinear", "coordinates": "periodic"},
            1,
            "meta_learn.window to more than 1",
        ),
        ({"map": "conv3x3"}, 1, "meta_learn.window to more than 1"),
        ({"coordinates": "global"}, 2, "cells_per_image=0"),
        ({}, 3, "windows from 1 to 2 cells a side"),
        ({}, 0, "windows from 1 to 2 cells a side"),
    ],
)
def test_windows_that_are_not_like_images_are_refused(changes, side, message):
    with pytest.raises(ValueError, match=message):
        make(**changes).window(side)


def test_bilinear_with_periodic_coords_is_continuous_in_space():
    field = make(interpolation="bilinear", coordinates="periodic")
    params = field.init(jax.random.key(0))
    latents = jax.random.normal(jax.random.key(1), (1, 2, 2, 4))
    coarse, fine = (field(params, latents, (size, 8))[0] for size in (64, 512))
    jump = [float(jnp.abs(jnp.diff(values, axis=0)).max()) for values in (coarse, fine)]
    assert jump[1] < jump[0] / 4  # eight times finer: a step between cells would not shrink


def test_a_config_of_another_version_is_told_what_it_lacks():
    config = digits.get_config("tiny")
    del config.field["upsampling"]
    with pytest.raises(ValueError, match=r"no field\.upsampling: another version"):
        build_field(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latent_shape": (3, 2, 4)}, "3x2 does not divide an image of 8x8"),
        ({"interpolation": "cubic"}, "field.interpolation='cubic'"),
        ({"map": "conv5x5"}, "field.map='conv5x5'"),
        ({"modulation": "film"}, "field.modulation='film'"),
        ({"upsampling": 3}, "field.upsampling=3 does not divide a cell of 4x4"),
        ({"upsampling": 0}, "field.upsampling=0"),
        ({"depth": 1}, "field.depth=1"),
        ({"width": 0}, "field.width=0"),
    ],
)
def test_errors_name_the_setting(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)
