"""Resolution, neighbors, midpoints and noise, against independent computations; tables."""

import jax
import numpy as np
import pytest
from PIL import Image

from functa.evaluation.analysis import latent_space
from functa.evaluation.analysis.table import Column, Table
from functa.evaluation.analysis.trained_field import image_mse
from tests.support.analysis_runs import COUNT, make_trained_field, psnr


def test_bicubic_and_shrink_equal_pillow():
    random = np.random.default_rng(0)
    small = random.random((2, 6, 5, 1), np.float32)
    large = np.asarray(latent_space.bicubic(small, 4))
    images = random.integers(0, 256, (2, 12, 8, 1), np.uint8)
    shrunk = latent_space.shrink(images, 2)
    for index in range(2):
        bicubic = Image.fromarray(small[index, ..., 0]).resize((20, 24), Image.Resampling.BICUBIC)
        np.testing.assert_allclose(large[index, ..., 0], bicubic, atol=1e-5)
        box = Image.fromarray(images[index, ..., 0]).resize((4, 6), Image.Resampling.BOX)
        assert np.abs(shrunk[index, ..., 0].astype(int) - np.asarray(box)).max() <= 1


def test_resolution_decodes_latents_fitted_to_shrunk_crops(run, subject):
    """The crops are images of the field itself at four times the resolution."""
    large = np.clip(np.rint(subject.decode(subject.fitted.latents, 4) * 255), 0, 255)
    large = large.astype(np.uint8)
    (row,) = latent_space.resolution(subject, {4: large})["resolution"].rows
    small, targets = latent_space.shrink(large, 4), large / np.float32(255)
    fitted = subject.fit(small)
    assert row["fit_psnr"] == pytest.approx(psnr(fitted.mse[:, -1]), abs=1e-4)
    decode = jax.jit(lambda latents: subject.field(run[1]["field"], latents, (32, 32)))
    expected = psnr(image_mse(np.asarray(decode(fitted.latents)), targets))
    assert row["psnr"] == pytest.approx(expected, abs=1e-3)
    enlarged = np.asarray(latent_space.bicubic(small / np.float32(255), 4))
    assert row["bicubic_psnr"] == pytest.approx(psnr(image_mse(enlarged, targets)), abs=1e-3)
    assert (row["size"], row["gain"]) == ("32x32", row["psnr"] - row["bicubic_psnr"])


def test_neighbors_are_found_in_standardized_latents_and_in_pixels(subject):
    latents = subject.fitted.latents / subject.channel_std
    accuracy = {}
    for space, points in {"latents": latents, "pixels": subject.targets}.items():
        rows = points.reshape(COUNT, -1)
        distances = np.linalg.norm(rows[:, None] - rows, axis=-1) + 1e9 * np.eye(COUNT)
        accuracy[space] = np.mean(subject.labels[distances.argmin(1)] == subject.labels)
    table = latent_space.neighbors(subject)
    assert {row["space"]: row["accuracy"] for row in table.rows} == pytest.approx(accuracy)
    for row in table.rows:
        variance = row["accuracy"] * (1 - row["accuracy"]) / COUNT
        assert row["standard_error"] == pytest.approx(variance**0.5)


def test_midpoint_of_equal_images_is_exact(run, subject):
    row = latent_space.midpoints(subject).rows[0]
    assert row["pairs"] == COUNT // 2
    values, latents = subject.decode(subject.fitted.latents), subject.fitted.latents
    middle = subject.decode((latents[:20] + latents[20:]) / 2)
    expected = psnr(image_mse(middle, (values[:20] + values[20:]) / 2))
    assert row["psnr"] == pytest.approx(expected, abs=1e-3)
    mean_image = (subject.targets[:20] + subject.targets[20:]) / 2
    assert row["image_psnr"] == pytest.approx(psnr(image_mse(middle, mean_image)), abs=1e-3)
    outside = np.mean([not -0.5 / 255 <= v <= 1 + 0.5 / 255 for v in values.ravel()])
    assert row["out_of_range_ends"] == pytest.approx(outside)
    repeated = make_trained_field(*run, images=np.tile(subject.images[:5], (2, 1, 1, 1)))
    assert latent_space.midpoints(repeated).rows[0]["psnr"] > 90


def test_more_noise_loses_more(subject):
    rows = latent_space.noise(subject).rows
    assert [row["noise"] for row in rows] == [0.01, 0.03, 0.1]
    assert 0 < rows[1]["lost"] < rows[2]["lost"]
    assert rows[0]["lost"] < rows[1]["lost"]
    exact = psnr(subject.fitted.mse[:, -1])
    assert rows[2]["psnr"] + rows[2]["lost"] == pytest.approx(exact, abs=1e-3)
    # Other noise of the same standard deviation loses about as much.
    latents, std = subject.fitted.latents, subject.channel_std
    noise = 0.1 * std * np.random.default_rng(0).normal(size=latents.shape)
    expected = psnr(subject.mse(latents + noise.astype(np.float32)))
    assert rows[2]["psnr"] == pytest.approx(expected, abs=0.05)


def test_table_as_text_and_json():
    columns = (
        Column("name", "", "its name"),
        Column("part", "%", "part of all"),
        Column("n", "", "a count"),
    )
    rows = [
        {"name": "a", "part": 0.25, "n": 1234},
        {"name": "bc", "part": float("nan"), "n": None},
        {"name": "d", "part": -1e-9, "n": 1},
    ]
    table = Table("Title", "A note.", 7, columns, rows)
    assert table.to_json()["rows"][:2] == [rows[0], {"name": "bc", "part": None, "n": None}]
    assert table.to_json()["columns"]["part"] == {"unit": "%", "meaning": "part of all"}
    lines = table.to_text().splitlines()
    assert lines[0] == "Title; 7 images"
    assert "    part  part of all (%)" in lines
    assert lines[-5:] == [
        "name   part      n",
        "------------------",
        "a     25.00  1,234",
        "bc      nan      -",
        "d      0.00      1",
    ]
