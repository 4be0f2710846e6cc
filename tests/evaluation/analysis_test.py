"""What tools/analyse.py measures, beside slow or independent computations, and what it refuses."""

import functools
import io
import json
import shutil
import xml.etree.ElementTree as ElementTree

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from configs import digits
from functa.data import crops, images
from functa.data.functaset import format
from functa.evaluation import pca_baseline
from functa.evaluation.analysis import (
    inner_steps,
    latent_space,
    measures,
    quantization,
    rate_chart,
    storage,
    trained_field,
)
from functa.evaluation.analysis.table import Column, Table
from functa.evaluation.analysis.trained_field import Subject, image_mse, to_float
from functa.fields import inner_loop, siren
from functa.fields import psnr as metrics
from functa.fields.field import make_field
from functa.pipeline import load
from functa.runtime import config
from functa.training import checkpoint
from functa.training.tasks import meta_learning
from tests.support.image_sources import png_of_16_bits
from tools import analyse

COUNT = 40  # no multiple of the batch of 16


STEPS = 3  # of the inner loop


def pca_field(field, cells):
    """Parameters, without training, of a field that is PCA of cells [n, k] to the first order.

    Values at zero latents are the mean, derivatives by the latents the principal components. The
    larger the part of the output layer that the values do not feel, the nearer to linear.
    """
    random = np.random.default_rng(0)
    mean, basis = metrics.fit_pca(cells, field.latent_shape[2])
    first = field.w0 * random.uniform(-1, 1, (field.num_features, field.width))
    bias = random.uniform(-3, 3, field.width)
    phases = field.layout_features(field.image_shape[:2])[0] @ first + bias
    inverse = np.linalg.pinv(np.sin(phases))
    unfelt = np.eye(field.width) - inverse @ np.sin(phases)
    output = inverse @ (mean - 0.5) + 10 * unfelt @ random.normal(size=field.width)
    weights = (np.linalg.pinv(np.cos(phases) * output) @ basis).T
    network = {
        "weights": [first, output[:, None] / siren.OUTPUT_SCALE],
        "biases": [bias, np.zeros(1)],
    }
    return jax.tree.map(np.float32, {"siren": network, "map": {"weight": weights}})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(directory of a run, its config, params, sources)."""
    settings = digits.get_config("tiny")
    settings.field.update(width=24, depth=2)
    sources = images.open_splits(**settings.data)
    field = make_field(settings)
    cells = metrics.image_cells(to_float(sources["train"].read(np.arange(96))["image"]), (2, 2))
    rates = np.log(np.float32([4, 5, 6]))  # 8 would solve a linear field at once
    params = {
        "field": pca_field(field, cells.reshape(-1, 16)),
        "log_inner_lrs": np.broadcast_to(rates[:, None, None, None], (STEPS, 1, 1, 8)),
    }
    directory = tmp_path_factory.mktemp("analysis") / "run"
    config.freeze(settings, directory)
    saved = checkpoint.Checkpoints(directory / "meta_learn" / "field", keep=1)
    saved.save(0, params, {"digest": checkpoint.digest(params)})
    saved.close()
    config.write_json(directory / "meta_learn" / "metrics.json", {})
    return directory, settings, params, sources


@pytest.fixture(scope="module")
def subject(run):
    _, settings, params, sources = run
    return make_subject(settings, params, sources)


def make_subject(settings, params, sources, **changes):
    options = {"split": "test", "count": COUNT, "crops": {}} | changes
    return Subject(settings, params, sources, **options)


class Chosen:
    """The same examples as `subject`, as a split of their own."""

    def __init__(self, source):
        self.num_examples = COUNT
        self.source = source
        self.rows = np.linspace(0, source.num_examples - 1, COUNT).astype(np.int64)

    def read(self, indices):
        return self.source.read(self.rows[indices])


def psnr(mse):
    return float(np.mean(-10 * np.log10(np.asarray(mse, np.float64))))


# --- the subject


def test_batches_are_filled_up_and_cut_again(subject):
    sizes = []

    def double(x):
        sizes.append(len(x))
        return {"twice": 2 * x}

    values = np.arange(COUNT)
    result = subject.in_batches(double, values)
    np.testing.assert_array_equal(result["twice"], 2 * values)
    assert sizes == [16, 16, 16]
    subject.in_batches(double, values, part=4)
    assert set(sizes[3:]) == {4}


def test_images_are_spread_over_the_split(run, subject):
    source = run[3]["test"]
    assert source.num_examples == 96
    np.testing.assert_array_equal(subject.images[[0, -1]], source.read(np.array([0, 95]))["image"])
    assert len(np.unique(Chosen(source).rows)) == COUNT


# --- steps and free


def test_the_trained_number_of_steps_scores_as_the_stage_meta_learn(run, subject):
    _, settings, params, sources = run
    task = meta_learning.make(settings, sources, process_index=0, process_count=1)
    rows = jax.jit(task.evaluate)(params, {"image": subject.images})
    expected = task.summarize({name: np.asarray(value) for name, value in rows.items()})
    table = inner_steps.steps(subject)["steps"]
    (row,) = [row for row in table.rows if row["steps"] == settings.inner_loop.steps]
    assert row["psnr"] == pytest.approx(expected["psnr"], abs=1e-4)
    assert row["psnr_of_mean_mse"] == pytest.approx(expected["psnr_of_mean_mse"], abs=1e-4)
    assert (row["gain"], row["worse"]) == (0, 0)
    assert [row["steps"] for row in table.rows] == [0, 1, 2, 3, 4, 6, 9, 10, 30, 100]
    assert table.images == COUNT


def test_other_numbers_of_steps_are_the_inner_loop_of_that_length(run, subject):
    _, _, params, _ = run
    found = {row["steps"]: row for row in inner_steps.steps(subject)["steps"].rows}
    log_lrs = params["log_inner_lrs"]
    assert log_lrs.shape[0] == STEPS
    images_ = jnp.asarray(to_float(subject.images))
    errors = {}
    for count in (2, 6):
        lrs = jnp.concatenate([log_lrs, jnp.repeat(log_lrs[-1:], 3, axis=0)])[:count]
        fit = functools.partial(inner_loop.fit, subject.field, steps=count, second_order=False)
        errors[count] = np.asarray(jax.jit(fit)(params["field"], lrs, images_).losses[-1])
        assert found[count]["psnr"] == pytest.approx(psnr(errors[count]), abs=1e-3)
    worse = np.mean(errors[6] > subject.fitted.mse[:, -1])
    assert found[6]["worse"] == pytest.approx(float(worse))
    assert found[2]["worse"] > 0.9
    levels = [found[count]["psnr"] for count in (2, 3, 6)]
    assert len({round(level, 1) for level in levels}) == 3  # so that no count passes for another


def test_bilinear_latents_go_on_in_the_basis_they_were_fitted_in():
    settings = digits.get_config("bilinear,tiny")
    field = make_field(settings)
    params = field.init(jax.random.key(0))
    log_lrs = jnp.zeros((1, 1, 1, 1))
    targets = jax.random.uniform(jax.random.key(1), (2, *field.image_shape))
    fits = [
        inner_loop.fit(field, params, log_lrs, targets, steps=count, second_order=False)
        for count in (1, 3)
    ]
    errors = inner_steps.continue_steps(field, params, log_lrs, targets, fits[0].latents, steps=2)
    np.testing.assert_allclose(errors[:, -1], fits[1].losses[-1], rtol=1e-5)


def test_refined_latents_find_an_image_the_field_can_make(run, subject):
    _, _, params, _ = run
    latents, unit = subject.fitted.latents[:2], subject.channel_std
    targets = subject.decode(latents)
    moved = latents + 0.3 * unit * np.random.default_rng(0).normal(size=latents.shape)
    start = moved.astype(np.float32)
    begun = image_mse(subject.decode(start), targets)
    refine = jax.jit(
        lambda *arrays: inner_steps.refine(subject.field, params["field"], *arrays, steps=200)
    )
    assert psnr(refine(unit, targets, start)) > psnr(begun) + 15
    # Far astray, to where numbers end: the beginning is the best.
    np.testing.assert_allclose(refine(1e30 * unit, targets, start), begun, rtol=1e-4)


def test_free_latents_are_never_worse(subject):
    inner, adam = inner_steps.free(subject)["free"].rows
    assert inner["psnr"] == pytest.approx(psnr(subject.fitted.mse[:, -1]), abs=1e-4)
    assert adam["psnr"] > inner["psnr"] + 0.1
    assert adam["gain"] == pytest.approx(adam["psnr"] - inner["psnr"])


# --- bits


def test_the_quantiser_is_the_nearest_middle_of_a_cell():
    random = np.random.default_rng(0)
    values = random.normal(size=(200, 3)).astype(np.float32) * np.float32([1, 5, 0]) + np.float32(7)
    for bits in (1, 3, 8):
        quantiser = quantization.fit_quantiser(values, bits)
        symbols = quantiser.symbols(values)
        assert symbols.min() >= 0
        assert symbols.max() < 2**bits
        restored = quantiser.restore(symbols)
        levels = quantiser.restore(np.arange(2**bits)[:, None])
        for k in range(3):
            nearest = [levels[np.argmin(np.abs(levels[:, k] - v)), k] for v in values[:, k]]
            np.testing.assert_allclose(restored[:, k], nearest, atol=1e-5)
        np.testing.assert_allclose(restored[:, 2], 7)


def test_a_fitted_range_is_better_than_the_whole_one_where_values_are_few_and_far():
    values = np.random.default_rng(0).normal(size=(5000, 1)).astype(np.float32)
    values[0] = 20
    error = {}
    for bits in (3, 4, 12):
        quantiser = quantization.fit_quantiser(values, bits)
        restored = quantiser.restore(quantiser.symbols(values))
        error[bits] = float(np.square(restored - values).mean())
    whole = (2 * 20 / 2**3) ** 2 / 12
    assert error[3] < whole / 4
    assert error[12] < error[4] / 10 < error[3]
    for bits in (0, 17):
        with pytest.raises(ValueError, match=f"{bits} bits"):
            quantization.fit_quantiser(values, bits)


def test_code_length_counts_with_the_tables_of_others():
    random = np.random.default_rng(0)
    known, symbols = random.integers(0, 4, (30, 2)), random.integers(0, 4, (5, 3, 2))
    expected = np.zeros(5)
    for image, place, channel in np.ndindex(5, 3, 2):
        seen = sum(row[channel] == symbols[image, place, channel] for row in known)
        expected[image] -= np.log2((seen + 0.5) / (30 + 2))
    np.testing.assert_allclose(quantization.code_length(known, symbols, 4), expected)


def test_packed_bytes_are_whole():
    assert [quantization.packed_bytes(3, bits) for bits in (3, 8, 6)] == [2, 3, 3]


def test_float32_loses_nothing_and_fewer_bits_are_never_better(run, subject):
    table = storage.quantisation(subject)["quantisation"]
    rows = {row["stored"]: row for row in table.rows}
    assert rows["float32"]["lost"] == pytest.approx(0, abs=1e-5)
    few = [rows[name]["psnr"] for name in ("float32", "8 bits", "6 bits", "5 bits", "4 bits")]
    few.append(rows["3 bits"]["psnr"])
    assert all(fewer < more + 0.02 for more, fewer in zip(few, few[1:], strict=False))
    assert few[-1] < few[0] - 0.5
    assert rows["int8"]["lost"] < rows["5 bits"]["lost"]
    half = subject.fitted.latents.astype(np.float16).astype(np.float32)
    decoded = subject.field(run[2]["field"], half)
    expected = psnr(image_mse(np.asarray(decoded), to_float(subject.images)))
    assert rows["float16"]["psnr"] == pytest.approx(expected, abs=1e-4)
    sizes = {name: row["bytes"] for name, row in rows.items()}
    layout = format.RecordLayout(subject.field.latent_shape, "int8")
    assert sizes == {
        "float32": 128, "float16": 64, "bfloat16": 64, "int8": layout.latent_bytes,
        "8 bits": 32, "6 bits": 24, "5 bits": 20, "4 bits": 16, "3 bits": 12,
    }  # fmt: skip


def test_images_of_many_numbers_have_fewer_references(run, monkeypatch):
    """Latents of 2x2x8: 21 of them are 672 numbers."""
    monkeypatch.setattr(trained_field, "_REFERENCE_NUMBERS", 32 * 21 + 31)
    _, settings, params, sources = run
    few = make_subject(settings, params, sources)
    assert few.reference_latents.shape == (21, 2, 2, 8)
    (table,) = storage.quantisation(few).values()
    assert "the latents of the first 21 training images" in table.note


# --- rate and distortion


def test_pca_beside_is_the_pca_of_the_stage_meta_learn(run, subject):
    sources = run[3]
    row, *coded = storage.pca_rows(subject, [40, 24, 12])
    expected = pca_baseline.pca_psnr(sources["train"], Chosen(sources["test"]), subject.field)
    assert row["psnr"] == pytest.approx(float(expected.mean()), abs=1e-4)
    assert row["bytes"] == 4 * 32
    assert all(one["bytes"] <= most for one, most in zip(coded, [40, 24, 12], strict=True))
    assert all(one["entropy_bytes"] < 1.2 * one["bytes"] for one in coded)
    assert coded[0]["psnr"] > coded[1]["psnr"] > coded[2]["psnr"]


def test_pca_of_coded_coefficients_by_a_slow_reconstruction(run, subject, monkeypatch):
    """One coefficient of each of 4 cells, 3 bits each, is all that 2 bytes hold."""
    monkeypatch.setattr(storage, "BITS", (3,))
    (_, row) = storage.pca_rows(subject, [2])
    assert row["setting"] == "1 floats a cell, 3 bits"
    cells = to_float(run[3]["train"].read(np.arange(96))["image"])
    cells = cells.reshape(96, 2, 4, 2, 4).swapaxes(2, 3).reshape(-1, 16).astype(np.float64)
    mean = cells.mean(0)
    basis = np.linalg.svd(cells - mean, full_matrices=False)[2][:1]
    quantiser = quantization.fit_quantiser(((cells - mean) @ basis.T).astype(np.float32), 3)
    own = to_float(subject.images).reshape(-1, 2, 4, 2, 4).swapaxes(2, 3).reshape(-1, 16)
    stored = quantiser.symbols(((own - mean) @ basis.T).astype(np.float32))
    rebuilt = mean + quantiser.restore(stored) @ basis
    mse = np.square(rebuilt - own).reshape(COUNT, -1).mean(1)
    assert row["psnr"] == pytest.approx(psnr(mse), abs=2e-2)


@pytest.mark.parametrize("channels", [1, 3])
def test_codecs_are_files_of_pillow(channels):
    random = np.random.default_rng(0)
    picture = random.integers(0, 256, (4, 8, 8, channels), np.uint8)
    for codec, options in (("JPEG", {"optimize": True}), ("WebP", {"method": 6})):
        rows = storage.codec_rows(picture, codec, **options)
        assert [row["setting"] for row in rows][0::6] == ["quality 5", "quality 95"]
        assert rows[0]["psnr"] < rows[-1]["psnr"]
        assert all(0 < row["flat_bytes"] < row["bytes"] for row in rows)
        sizes, errors = [], []
        for image in picture:
            stream = io.BytesIO()
            flat = image[..., 0] if channels == 1 else image
            Image.fromarray(flat).save(stream, codec, quality=50, **options)
            sizes.append(len(stream.getvalue()))
            back = np.asarray(Image.open(stream).convert("L" if channels == 1 else "RGB"))
            errors.append(np.square((back.astype(float) - flat) / 255).mean())
        assert rows[3]["bytes"] == np.mean(sizes)
        assert rows[3]["psnr"] == pytest.approx(psnr(errors), abs=1e-3)


# --- resolutions


def test_enlarging_and_shrinking_are_those_of_pillow():
    random = np.random.default_rng(0)
    small = random.random((2, 6, 5, 1), np.float32)
    large = np.asarray(latent_space.bicubic(small, 4))
    bytes_ = random.integers(0, 256, (2, 12, 8, 1), np.uint8)
    for index in range(2):
        picture = Image.fromarray(small[index, ..., 0])
        expected = picture.resize((20, 24), Image.Resampling.BICUBIC)
        np.testing.assert_allclose(large[index, ..., 0], expected, atol=1e-5)
        box = Image.fromarray(bytes_[index, ..., 0]).resize((4, 6), Image.Resampling.BOX)
        assert (
            np.abs(
                latent_space.shrink(bytes_, 2)[index, ..., 0].astype(int) - np.asarray(box)
            ).max()
            <= 1
        )


def test_resolution_scores_what_the_field_says_between_pixels(run):
    """Pictures that the field itself makes at four times the resolution: it beats bicubic on them."""
    _, settings, params, sources = run
    plain = make_subject(settings, params, sources)
    large = np.clip(np.rint(plain.decode(plain.fitted.latents, 4) * 255), 0, 255).astype(np.uint8)
    asked = make_subject(settings, params, sources, crops={4: large})
    (row,) = latent_space.resolution(asked)["resolution"].rows
    fitted = plain.fit(latent_space.shrink(large, 4))
    assert row["fit_psnr"] == pytest.approx(psnr(fitted.mse[:, -1]), abs=1e-4)
    values = jax.jit(lambda x: plain.field(params["field"], x, (32, 32)))(fitted.latents)
    assert row["psnr"] == pytest.approx(
        psnr(image_mse(np.asarray(values), to_float(large))), abs=1e-3
    )
    enlarged = np.asarray(latent_space.bicubic(to_float(latent_space.shrink(large, 4)), 4))
    assert row["bicubic_psnr"] == pytest.approx(
        psnr(image_mse(enlarged, to_float(large))), abs=1e-3
    )
    assert (row["size"], row["gain"]) == ("32x32", row["psnr"] - row["bicubic_psnr"])


def save(path, array):
    Image.fromarray(array).save(path)


def test_crops_lie_side_by_side_in_the_middle(tmp_path):
    random = np.random.default_rng(0)
    first, second = random.integers(0, 256, (9, 13, 3), np.uint8), np.full((8, 8, 3), 9, np.uint8)
    save(tmp_path / "a.png", first)
    save(tmp_path / "b.PNG", second)
    (tmp_path / "notes.txt").write_text("no picture")
    four, eight = crops.read_crops(tmp_path, shapes=[(4, 4), (8, 8)], channels=3, count=2)
    np.testing.assert_array_equal(four[0], first[0:4, 0:4])
    np.testing.assert_array_equal(four[1], second[4:, 4:])
    np.testing.assert_array_equal(eight[0], first[0:8, 2:10])
    (all_,) = crops.read_crops(tmp_path, shapes=[(4, 4)], channels=1, count=10)
    assert all_.shape == (10, 4, 4, 1)
    grey = np.asarray(Image.fromarray(first).convert("L"))
    np.testing.assert_array_equal(all_[4, ..., 0], grey[4:8, 4:8])


def test_pictures_that_do_not_serve_are_all_told(tmp_path):
    def refusal(**changes):
        options = {"shapes": [(4, 4), (8, 8)], "channels": 3, "count": 1} | changes
        with pytest.raises(ValueError, match=r".") as caught:
            crops.read_crops(tmp_path / "p", **options)
        return str(caught.value)

    assert "is not a folder" in refusal()
    (tmp_path / "p").mkdir()
    assert "holds no PNG or JPEG" in refusal()
    save(tmp_path / "p" / "small.png", np.zeros((5, 9), np.uint8))
    (tmp_path / "p" / "broken.jpg").write_bytes(b"no image")
    save(tmp_path / "p" / "deep.png", np.zeros((9, 9), np.uint16))
    (tmp_path / "p" / "deep_colour.png").write_bytes(png_of_16_bits())
    lines = refusal().splitlines()
    names = ("broken.jpg", "deep.png", "deep_colour.png", "small.png")
    assert [name in line for name, line in zip(names, lines, strict=True)] == [True] * 4
    assert "more than 8 bits" in lines[1]
    assert "more than 8 bits" in lines[2]
    assert "5x9 pixels: too small for a crop of 8x8" in lines[3]
    (tmp_path / "p" / "deep_colour.png").unlink()
    (tmp_path / "p" / "broken.jpg").unlink()
    (tmp_path / "p" / "deep.png").unlink()
    assert "gives 2 crops of 4x4 pixels, fewer than the 3" in refusal(shapes=[(4, 4)], count=3)
    save(tmp_path / "p" / "cut.png", np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8))
    content = (tmp_path / "p" / "cut.png").read_bytes()
    (tmp_path / "p" / "cut.png").write_bytes(content[: len(content) // 2])
    assert "cut.png cannot be read" in refusal(shapes=[(4, 4)])


# --- the space of latents


def test_nearest_other_by_a_slow_search(monkeypatch):
    monkeypatch.setattr(latent_space, "_ROWS", 4)
    points = np.random.default_rng(0).normal(size=(11, 3)).astype(np.float32)
    expected = []
    for k in range(11):
        distances = [np.inf if k == m else np.sum((points[k] - points[m]) ** 2) for m in range(11)]
        expected.append(int(np.argmin(distances)))
    assert latent_space.nearest_other(points).tolist() == expected


def test_neighbours_are_taken_of_latents_in_units_of_their_channel(subject, monkeypatch):
    seen = []
    monkeypatch.setattr(
        latent_space, "nearest_other", lambda points: seen.append(points) or np.arange(COUNT)
    )
    table = latent_space.neighbours(subject)
    assert [row["accuracy"] for row in table.rows] == [1, 1]
    expected = (subject.fitted.latents / subject.channel_std).reshape(COUNT, -1)
    np.testing.assert_allclose(seen[0], expected, rtol=1e-6)
    monkeypatch.setattr(latent_space, "nearest_other", lambda points: np.zeros(COUNT, int))
    same = np.mean(subject.labels == subject.labels[0])
    assert [row["accuracy"] for row in latent_space.neighbours(subject).rows] == [same, same]


def test_midpoints_of_a_pair_of_equal_images_are_exact(run, subject):
    row = latent_space.midpoints(subject).rows[0]
    assert row["pairs"] == COUNT // 2
    values = subject.decode(subject.fitted.latents)
    middle = subject.decode((subject.fitted.latents[:20] + subject.fitted.latents[20:]) / 2)
    assert row["psnr"] == pytest.approx(
        psnr(image_mse(middle, (values[:20] + values[20:]) / 2)), abs=1e-3
    )
    outside = np.mean([not -0.5 / 255 <= v <= 1 + 0.5 / 255 for v in values.ravel()])
    assert row["outside_ends"] == pytest.approx(outside)
    double = make_subject(*run[1:])
    double.images = np.tile(subject.images[:5], (2, 1, 1, 1))
    assert latent_space.midpoints(double).rows[0]["psnr"] > 90


def test_more_noise_loses_more(subject):
    rows = latent_space.noise(subject).rows
    assert [row["noise"] for row in rows] == [0.01, 0.03, 0.1]
    lost = [row["lost"] for row in rows]
    assert 0 < lost[1] < lost[2]
    assert lost[0] < lost[1]
    exact = psnr(subject.fitted.mse[:, -1])
    assert rows[2]["psnr"] + lost[2] == pytest.approx(exact, abs=1e-3)


# --- tables, the chart and the tool


def test_a_table_says_what_its_columns_are():
    columns = (
        Column("name", "", "of it"),
        Column("part", "%", "of all"),
        Column("n", "", "how many"),
    )
    rows = [
        {"name": "a", "part": 0.25, "n": 1234},
        {"name": "bc", "part": float("nan"), "n": None},
        {"name": "d", "part": -1e-9, "n": 1},
    ]
    table = Table("Title", "A note.", 7, columns, rows)
    assert table.to_json()["rows"][0] == {"name": "a", "part": 0.25, "n": 1234}
    assert table.to_json()["rows"][1] == {"name": "bc", "part": None, "n": None}
    assert table.to_json()["columns"]["part"] == {"unit": "%", "meaning": "of all"}
    lines = table.lines()
    assert lines[0] == "Title; 7 images"
    assert "    part  of all (%)" in lines
    assert lines[-5:] == [
        "name   part      n",
        "------------------",
        "a     25.00  1,234",
        "bc      nan      -",
        "d      0.00      1",
    ]


def test_the_chart_leaves_out_what_is_beaten():
    def row(method, size, psnr, estimate=None):
        return {"method": method, "bytes": size, "psnr": psnr, "entropy_bytes": estimate}

    rows = [row("functa", 20.0, 30.0), row("functa", 10.0, 25.0, 9.0), row("functa", 40.0, 30.0)]
    table = Table("Curve", "", 1, (), [*rows, row("<JPEG>", 30.0, 20.0)])
    first, estimate, last = rate_chart.curves(table)
    assert first == ("functa", [10.0, 20.0], [25.0, 30.0])
    assert estimate == ("functa, entropy estimate", [9.0], [25.0])
    assert last == ("<JPEG>", [30.0], [20.0])
    root = ElementTree.fromstring(rate_chart.draw(table))
    texts = [element.text for element in root.iter() if element.tag.endswith("text")]
    assert {"functa", "functa, entropy estimate", "<JPEG>"} <= set(texts)


def test_the_tool_measures_all_and_writes_json_and_a_chart(run, tmp_path, capsys):
    directory = run[0]
    (tmp_path / "p").mkdir()
    save(tmp_path / "p" / "a.png", np.random.default_rng(0).integers(0, 256, (64, 80), np.uint8))
    options = ["--images", "4", "--pictures", str(tmp_path / "p"), "--scales", "2"]
    file = tmp_path / "a.json"
    assert analyse.main([str(directory), *options, "--json", str(file)]) == 0
    output = capsys.readouterr().out
    result = json.loads(file.read_text())
    assert result["field_digest"] == checkpoint.digest(run[2])
    assert list(result["tables"]) == [
        "steps", "free", "quantisation", "rate_distortion", "resolution",
        "latents_neighbours", "latents_midpoints", "latents_noise",
    ]  # fmt: skip
    for table in result["tables"].values():
        assert table["title"] + f"; {table['images']} images" in output
        assert all(row.keys() == table["columns"].keys() for row in table["rows"])
    methods = {row["method"] for row in result["tables"]["rate_distortion"]["rows"]}
    assert methods == {"functa", "PCA", "JPEG", "WebP"}
    ElementTree.parse(directory / "analysis.svg")
    arguments = [str(directory), "--images", "4", "--measure", "quantisation", "--json", "-"]
    assert analyse.main(arguments) == 0
    assert list(json.loads(capsys.readouterr().out)["tables"]) == ["quantisation"]


@pytest.mark.parametrize(
    ("options", "messages"),
    [
        (["--measure", "speed,steps", "--images", "1", "--split", "dev"],
         ["unknown measure 'speed': known are steps, free", "--images=1 must be at least 2",
          "unknown split 'dev': known are train"]),
        (["--images", "97"], ["--images=97: the split test has 96 images"]),
        (["--measure", "resolution"], ["needs --pictures"]),
        (["--measure", "resolution", "--pictures", "nowhere", "--scales", "1,2"],
         ["nowhere is not a folder", "--scales: 1 times"]),
        (["--measure", "steps", "--pictures", "p", "--scales", "2", "--chart", "c.svg"],
         ["--pictures is for the measure resolution", "--scales is for the measure resolution",
          "--chart is for the measure rate_distortion"]),
        (["--measure", ",", "--images", "9"], ["no measure named"]),
        (["--scales", "2x"], ["scales look like 2,4"]),
    ],
)  # fmt: skip
def test_the_tool_tells_all_that_is_wrong_before_it_compiles(
    run, capsys, monkeypatch, options, messages
):
    monkeypatch.setattr(measures, "Subject", None)  # nothing may be computed
    with pytest.raises(SystemExit) as caught:
        analyse.main([str(run[0]), *options])
    assert caught.value.code == 2
    told = capsys.readouterr().err
    assert all(message in told for message in messages), told


def test_the_tool_refuses_what_is_no_finished_run(run, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        analyse.main([str(tmp_path / "no"), "--measure", "speed"])
    assert caught.value.code == 2
    told = capsys.readouterr().err
    assert "is not the directory of a run" in told
    assert "unknown measure 'speed'" in told
    config.freeze(run[1], tmp_path / "begun")
    with pytest.raises(SystemExit):
        analyse.main([str(tmp_path / "begun")])
    assert "the stage meta_learn of" in capsys.readouterr().err
    moved = ["--data_dir", str(tmp_path), "--measure", "steps"]
    analyse.main([str(run[0]), *moved, "--images", "2"])  # the digits are embedded and need none


def test_a_run_under_way_is_neither_read_nor_touched(run, tmp_path):
    """Without metrics the stage is not complete; a save under way is its own."""
    copy = shutil.copytree(run[0], tmp_path / "run")
    under_way = copy / "meta_learn" / "field" / "step_1.orbax-checkpoint-tmp"
    under_way.mkdir()
    load.load_field(copy)
    assert under_way.exists()
    (copy / "meta_learn" / "metrics.json").unlink()
    with pytest.raises(ValueError, match="metrics.json does not exist: the stage meta_learn of"):
        load.load_field(copy)


def test_the_config_of_another_version_is_told(run, tmp_path):
    copy = shutil.copytree(run[0], tmp_path / "run")
    settings = config.read_json(copy / "config.json")
    del settings["meta_learn"]["loss"]
    config.write_json(copy / "config.json", settings)
    with pytest.raises(ValueError, match=r"has not the keys of this version of functa.*loss"):
        load.load_field(copy)


def test_a_split_of_one_image_is_too_small(run, tmp_path):
    _, settings, params, _ = run
    alone = config.from_dict(config.to_dict(settings))
    alone.data.max_examples = 1
    config.freeze(alone, tmp_path / "run")
    saved = checkpoint.Checkpoints(tmp_path / "run" / "meta_learn" / "field", keep=1)
    saved.save(0, params, {"digest": checkpoint.digest(params)})
    saved.close()
    config.write_json(tmp_path / "run" / "meta_learn" / "metrics.json", {})
    request = measures.Request(
        run=tmp_path / "run", measures=["steps"], split="test", images=None, default_images=256,
        pictures=None, scales=(2, 4), data_dir=None,
    )  # fmt: skip
    with pytest.raises(ValueError, match="the split test has 1 image: too few"):
        measures.open_subject(request, [])
