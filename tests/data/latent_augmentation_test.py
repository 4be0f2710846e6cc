"""Changes of latents at every step, against slow NumPy, and what they are a function of."""

import jax
import numpy as np
import pytest

from functa.data import latent_augmentation
from functa.plan.compiled import collectives
from functa.runtime import mesh as mesh_lib

SHAPE = (4, 6, 3)
OFF = {"flip": False, "crop": 0, "drop": 0.0, "noise": 0.0}
ON = {"flip": True, "crop": 1, "drop": 0.2, "noise": 0.1}


def latents_of(count, shape=SHAPE, seed=0):
    return np.random.default_rng(seed).normal(size=(count, *shape)).astype(np.float32)


def augment(latents, seed=0, **changes):
    made = latent_augmentation.make(latent_shape=latents.shape[1:], **(OFF | changes))
    return np.asarray(jax.jit(made)(latents, jax.random.key(seed)))


def test_with_everything_off_nothing_is_computed():
    made = latent_augmentation.make(latent_shape=SHAPE, **OFF)
    latents = latents_of(2)
    assert made(latents, jax.random.key(0)) is latents


def test_half_of_the_grids_are_mirrored():
    latents = latents_of(400)
    flipped = augment(latents, flip=True)
    mirrored = (flipped == latents[:, :, ::-1]).all(axis=(1, 2, 3))
    same = (flipped == latents).all(axis=(1, 2, 3))
    assert (mirrored ^ same).all()
    assert 150 < mirrored.sum() < 250


def test_a_crop_is_a_window_of_the_padded_grid():
    latents, padding = latents_of(500), 2
    cropped = augment(latents, crop=padding)
    padded = np.pad(latents, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    found = np.zeros((5, 5), int)
    for grid, window in zip(padded, cropped, strict=True):
        places = [
            (row, column)
            for row in range(5)
            for column in range(5)
            if (grid[row : row + 4, column : column + 6] == window).all()
        ]
        assert len(places) == 1
        found[places[0]] += 1
    assert found.min() > 4  # every window, each example its own


def test_cells_are_dropped_whole_and_one_by_one():
    latents = latents_of(500)
    dropped = augment(latents, drop=0.3)
    gone = (dropped == 0).all(axis=-1)
    assert gone.mean() == pytest.approx(0.3, abs=0.02)
    assert 0 < gone.reshape(500, -1).sum(axis=1).min() < gone.reshape(500, -1).sum(axis=1).max()
    np.testing.assert_array_equal(dropped[~gone], latents[~gone])


def test_noise_has_the_stated_scale():
    noise = augment(latents_of(500), noise=0.3) - latents_of(500)
    assert noise.mean() == pytest.approx(0, abs=0.01)
    assert noise.std() == pytest.approx(0.3, rel=0.02)


@pytest.mark.parametrize("name", ON)
def test_what_is_drawn_is_a_function_of_the_key(name):
    latents = latents_of(16)
    change = {name: ON[name]}
    np.testing.assert_array_equal(augment(latents, **change), augment(latents, **change))
    assert (augment(latents, **change) != augment(latents, seed=1, **change)).any()


def test_the_order_is_flip_crop_drop_noise_each_with_a_draw_of_its_own():
    """What is on does not change what the others draw."""
    latents = latents_of(16)
    expected = augment(augment(latents, flip=True), crop=1)
    np.testing.assert_array_equal(augment(latents, flip=True, crop=1), expected)
    expected = augment(augment(expected, drop=0.2), noise=0.1)
    np.testing.assert_allclose(augment(latents, **ON), expected, atol=1e-6)


def test_devices_change_nothing_and_send_each_other_nothing():
    latents = latents_of(16)
    mesh = mesh_lib.make_mesh()
    made = jax.jit(
        latent_augmentation.make(latent_shape=SHAPE, **ON), out_shardings=mesh_lib.batched(mesh)
    )
    shared = mesh_lib.to_devices(mesh, {"latents": latents})["latents"]
    compiled = made.lower(shared, jax.random.key(0)).compile()
    assert not collectives(compiled)
    np.testing.assert_allclose(
        compiled(shared, jax.random.key(0)), augment(latents, **ON), atol=1e-6
    )


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"crop": 4}, "crop=4 must be from 0 to 3"),
        ({"crop": -1, "drop": 1.0}, "crop=-1 must be from 0 to 3; drop=1.0 must be from 0"),
        ({"noise": float("nan")}, "noise=nan"),
    ],
)
def test_impossible_values_are_told(changes, told):
    with pytest.raises(ValueError, match=told):
        latent_augmentation.make(latent_shape=SHAPE, **(OFF | changes))


def test_a_grid_of_one_column_cannot_be_mirrored():
    with pytest.raises(ValueError, match="flip=True: a grid of 3x1 cells has nothing to mirror"):
        latent_augmentation.make(latent_shape=(3, 1, 8), **(OFF | {"flip": True}))


def test_a_misspelt_key_is_a_type_error():
    with pytest.raises(TypeError, match="filp"):
        latent_augmentation.make(latent_shape=SHAPE, **OFF, filp=True)


def test_mix_is_mixup_with_a_partner():
    random = np.random.default_rng(0)
    batch = random.normal(size=(200, 2, 2, 4)).astype(np.float32)
    targets = np.eye(3, dtype=np.float32)[random.integers(0, 3, 200)]
    key = jax.random.key(1)
    latents, mixed = latent_augmentation.mix(batch, targets, key=key, alpha=0.7)
    share_key, order_key = jax.random.split(key)
    share = np.asarray(jax.random.beta(share_key, 0.7, 0.7, shape=(200,)))
    order = np.asarray(jax.random.permutation(order_key, 200))
    assert sorted(order) == list(range(200))
    assert share.std() > 0.2  # one an example, and of the wide distribution Beta(0.7, 0.7)
    for example, partner in enumerate(order):
        part, rest = share[example], 1 - share[example]
        expected = part * batch[example] + rest * batch[partner]
        np.testing.assert_allclose(latents[example], expected, rtol=1e-4, atol=1e-5)
        expected = part * targets[example] + rest * targets[partner]
        np.testing.assert_allclose(mixed[example], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("alpha", [0.1, 5.0])
def test_share_of_mixup_follows_alpha(alpha):
    targets = np.zeros((4000, 1), np.float32)
    latents = np.zeros((4000, 1, 1, 1), np.float32)
    latents[:2000] = 1
    mixed, _ = latent_augmentation.mix(latents, targets, key=jax.random.key(0), alpha=alpha)
    # between different partners the latents are the share itself, whose variance is 1 / (4 (2 a +
    # 1))
    shares = np.asarray(mixed)[(np.asarray(mixed) > 0) & (np.asarray(mixed) < 1)]
    assert shares.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.15)
