import jax
import numpy as np
import pytest

from functa.data.latent_augmentation import make_augment, mixup
from functa.runtime import mesh as mesh_lib
from tests.support.collectives import collectives

SHAPE = (4, 6, 3)
OFF = {"flip": False, "crop": 0, "drop": 0.0, "noise": 0.0}
ON = {"flip": True, "crop": 1, "drop": 0.2, "noise": 0.1}


def random_latents(count):
    return np.random.default_rng(0).normal(size=(count, *SHAPE)).astype(np.float32)


def augment(latents, seed=0, **changes):
    function = make_augment(latent_shape=SHAPE, **(OFF | changes))
    return np.asarray(jax.jit(function)(latents, jax.random.key(seed)))


def test_all_operations_off_return_the_latents():
    latents = random_latents(2)
    assert make_augment(latent_shape=SHAPE, **OFF)(latents, jax.random.key(0)) is latents


def test_flip_mirrors_half_of_the_grids():
    latents = random_latents(400)
    flipped = augment(latents, flip=True)
    mirrored = (flipped == latents[:, :, ::-1]).all(axis=(1, 2, 3))
    same = (flipped == latents).all(axis=(1, 2, 3))
    assert (mirrored ^ same).all()
    assert 150 < mirrored.sum() < 250


def test_crop_cuts_windows_of_the_padded_grid():
    latents, padding = random_latents(500), 2
    cropped = augment(latents, crop=padding)
    padded = np.pad(latents, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    counts = np.zeros((5, 5), int)
    for grid, window in zip(padded, cropped, strict=True):
        (place,) = [
            (row, column)
            for row, column in np.ndindex(5, 5)
            if (grid[row : row + 4, column : column + 6] == window).all()
        ]
        counts[place] += 1
    assert counts.min() > 4  # expected: 20
    assert (augment(latents, crop=padding, seed=1) != cropped).any()


def test_drop_zeroes_whole_cells_independently():
    latents = random_latents(500)
    dropped = augment(latents, drop=0.3)
    zero = (dropped == 0).all(axis=-1)
    assert zero.mean() == pytest.approx(0.3, abs=0.02)
    assert zero.sum(axis=(1, 2)).std() == pytest.approx((24 * 0.3 * 0.7) ** 0.5, rel=0.15)
    np.testing.assert_array_equal(dropped[~zero], latents[~zero])


def test_noise_has_the_requested_standard_deviation():
    noise = augment(random_latents(500), noise=0.3) - random_latents(500)
    assert noise.mean() == pytest.approx(0, abs=0.01)
    assert noise.std() == pytest.approx(0.3, rel=0.02)


def test_operations_are_applied_in_order_with_keys_of_their_own():
    latents = random_latents(16)
    keys = jax.random.split(jax.random.key(0), 4)
    mirror = np.asarray(jax.random.bernoulli(keys[0], 0.5, (16, 1, 1, 1)))
    expected = np.where(mirror, latents[:, :, ::-1], latents)
    padded = np.pad(expected, ((0, 0), (1, 1), (1, 1), (0, 0)))
    starts = np.asarray(jax.random.randint(keys[1], (16, 2), 0, 3))
    expected = np.stack([padded[k, r : r + 4, c : c + 6] for k, (r, c) in enumerate(starts)])
    dropped = np.asarray(jax.random.bernoulli(keys[2], ON["drop"], (16, 4, 6, 1)))
    expected = np.where(dropped, 0, expected)
    expected += ON["noise"] * np.asarray(jax.random.normal(keys[3], latents.shape))
    np.testing.assert_allclose(augment(latents, **ON), expected, atol=1e-6)


def test_sharded_batches_need_no_communication():
    latents = random_latents(16)
    mesh = mesh_lib.make_mesh()
    function = make_augment(latent_shape=SHAPE, **ON)
    function = jax.jit(function, out_shardings=mesh_lib.batched(mesh))
    sharded = mesh_lib.to_devices(mesh, {"latents": latents})["latents"]
    compiled = function.lower(sharded, jax.random.key(0)).compile()
    assert not collectives(compiled)
    actual = compiled(sharded, jax.random.key(0))
    np.testing.assert_allclose(actual, augment(latents, **ON), atol=1e-6)


def test_impossible_values_are_refused_all_at_once():
    with pytest.raises(ValueError, match=r"crop=-1 .*drop=1.0 .*noise=nan .*flip=True"):
        make_augment(latent_shape=(3, 1, 8), flip=True, crop=-1, drop=1.0, noise=float("nan"))
    with pytest.raises(ValueError, match="crop=4"):
        make_augment(latent_shape=SHAPE, **OFF | {"crop": 4})


def test_mixup_mixes_latents_and_targets_with_one_partner():
    """Against a loop; the partner and the weight of an example are read off one-hot targets."""
    latents = random_latents(200)
    targets = np.eye(200, dtype=np.float32)
    mixed_latents, mixed = map(
        np.asarray, mixup(latents, targets, key=jax.random.key(1), alpha=0.7)
    )
    partners = []
    for k, row in enumerate(mixed):
        others = np.flatnonzero(row * (np.arange(200) != k))
        partners.append(int(others[0]) if others.size else k)
        weight = row[k] if others.size else 1
        expected = weight * latents[k] + (1 - weight) * latents[partners[-1]]
        np.testing.assert_allclose(mixed_latents[k], expected, rtol=1e-4, atol=1e-5)
    assert sorted(partners) == list(range(200))  # a permutation


@pytest.mark.parametrize("alpha", [0.1, 5.0])
def test_weights_of_mixup_are_beta_distributed(alpha):
    targets = np.zeros((4000, 1), np.float32)
    latents = np.zeros((4000, 1, 1, 1), np.float32)
    latents[:2000] = 1
    mixed = np.asarray(mixup(latents, targets, key=jax.random.key(0), alpha=alpha)[0])
    # Of partners with different latents, the mixed latents are the weights themselves.
    weights = mixed[(mixed > 0) & (mixed < 1)]
    assert weights.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.15)
