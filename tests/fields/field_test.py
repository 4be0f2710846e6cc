import jax
import jax.numpy as jnp
import numpy as np
import pytest

from functa.configs import digits
from functa.fields import coordinates
from functa.fields.field import Field
from functa.fields.fitter import build_field
from functa.fields.image_parts import window_field


def make_field(**changes):
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


def with_random_map(params):
    """Replaces the weights of the map by random ones; initially conv3x3 ignores the neighbors."""
    weight = params["map"]["weight"]
    noise = jax.random.normal(jax.random.key(7), weight.shape) / len(weight) ** 0.5
    return params | {"map": params["map"] | {"weight": noise}}


def slow_field(field, params, latents, shape):
    """Reference: one pixel at a time, in float64."""
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
    ("nearest", "local", "linear", "shift"),
    ("bilinear", "periodic", "linear", "shift"),
    ("nearest", "global", "conv3x3", "shift"),
    ("bilinear", "binary", "conv3x3", "shift_scale"),
    ("nearest", "binary", "mlp", "shift_scale"),
    ("bilinear", "global", "mlp", "shift"),
]


@pytest.mark.parametrize("upsampling", [1, 2])
@pytest.mark.parametrize("choices", COMBINATIONS, ids="-".join)
def test_values_match_the_reference(choices, upsampling):
    names = ("interpolation", "coordinates", "map", "modulation")
    field = make_field(**dict(zip(names, choices, strict=True)), upsampling=upsampling)
    params = with_random_map(field.init(jax.random.key(0)))
    params["siren"]["biases"][-1] = jnp.float32([0.1, -0.2, 0.3])
    latents = jax.random.normal(jax.random.key(1), (2, *field.latent_shape))
    # Trained resolution, whole cells, pixels across cell borders.
    for shape in ((8, 8), (12, 16), (7, 9)):
        fast = jax.jit(field, static_argnums=2)(params, latents, shape)
        assert fast.shape == (2, *shape, 3)
        slow = slow_field(field, params, np.asarray(latents[1], np.float64), shape)
        np.testing.assert_allclose(fast[1], slow, atol=3e-6)


def test_number_of_parameters_is_the_published_one():
    """Spatial functa has 286,467 parameters at depth 6, width 256, 8x8x16.

    Its published count includes biases of the map, 5 * 256, which functa has not.
    """
    field = make_field(image_shape=(32, 32, 3), latent_shape=(8, 8, 16), width=256, depth=6)
    shapes = jax.eval_shape(field.init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 286_467 - 5 * 256


@pytest.mark.parametrize("map_kind", ["linear", "conv3x3", "mlp"])
def test_sub_cells_are_equal_at_initialization(map_kind):
    latents = jax.random.normal(jax.random.key(1), (1, 2, 2, 4))
    whole, parts = (
        field(field.init(jax.random.key(0)), latents)
        for field in (make_field(map=map_kind), make_field(map=map_kind, upsampling=2))
    )
    np.testing.assert_allclose(parts, whole, atol=1e-6)


@pytest.mark.parametrize(
    ("upsampling", "shape", "place"), [(1, (1, 16), (0, 5)), (2, (4, 4), (0, 3))]
)
def test_layout_round_trip(upsampling, shape, place):
    images = np.random.default_rng(0).random((2, 8, 8, 3), np.float32)
    field = make_field(upsampling=upsampling)
    layout = field.to_layout(jnp.asarray(images))
    assert layout.shape == (2, 2, 2, *shape, 3)
    np.testing.assert_array_equal(layout[(1, 1, 0, *place)], images[1, 5, 1])
    np.testing.assert_array_equal(field.to_image(layout, (8, 8)), images)


def test_window_of_one_cell_matches_the_image():
    field = make_field(map="mlp", upsampling=2)
    params = with_random_map(field.init(jax.random.key(0)))
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
def test_window_matches_the_image_away_from_its_border(changes, reach):
    field = make_field(image_shape=(32, 32, 3), latent_shape=(8, 8, 4), **changes)
    params = with_random_map(field.init(jax.random.key(0)))
    latents = jax.random.normal(jax.random.key(1), (1, 8, 8, 4))
    whole = field(params, latents)[:, 4:28, 8:32]
    window = window_field(field, 6)(params, latents[:, 1:7, 2:8])
    border = 4 * reach  # pixels; on the right, the window ends where the image ends
    inside = (slice(None), slice(border, -border), slice(border, None))
    np.testing.assert_allclose(window[inside], whole[inside], atol=1e-5)
    assert np.abs(window - whole).max() > 1e-3


@pytest.mark.parametrize(
    ("changes", "side", "message"),
    [
        ({"interpolation": "bilinear", "coordinates": "periodic"}, 1, "meta_learn.window"),
        ({"map": "conv3x3"}, 1, "meta_learn.window"),
        ({"coordinates": "global"}, 2, "cells_per_image=0"),
        ({}, 3, "meta_learn.window="),
        ({}, 0, "meta_learn.window="),
    ],
)
def test_impossible_windows_are_rejected(changes, side, message):
    with pytest.raises(ValueError, match=message):
        window_field(make_field(**changes), side)


def test_bilinear_field_with_periodic_coordinates_is_continuous():
    field = make_field(interpolation="bilinear", coordinates="periodic")
    params = field.init(jax.random.key(0))
    latents = jax.random.normal(jax.random.key(1), (1, 2, 2, 4))
    coarse, fine = (field(params, latents, (size, 8))[0] for size in (64, 512))
    jump = [float(jnp.abs(jnp.diff(values, axis=0)).max()) for values in (coarse, fine)]
    assert jump[1] < jump[0] / 4  # at 8 times the resolution; a jump between cells would not shrink


def test_config_without_a_key_is_rejected():
    config = digits.get_config("tiny")
    del config.field["upsampling"]
    with pytest.raises(ValueError, match="field.upsampling"):
        build_field(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latent_shape": (3, 2, 4)}, "3x2"),
        ({"interpolation": "cubic"}, "field.interpolation='cubic'"),
        ({"map": "conv5x5"}, "field.map='conv5x5'"),
        ({"modulation": "film"}, "field.modulation='film'"),
        ({"upsampling": 3}, "field.upsampling=3"),
        ({"upsampling": 0}, "field.upsampling=0"),
        ({"depth": 1}, "field.depth=1"),
        ({"width": 0}, "field.width=0"),
    ],
)
def test_errors_name_the_key(changes, message):
    with pytest.raises(ValueError, match=message):
        make_field(**changes)
