"""tools/sample.py on a run with a random generator: what it draws, writes and refuses."""

import json

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from functa.data.functaset import reader
from functa.diffusion import sample as samples
from functa.diffusion import sharded_sampling
from functa.pipeline import load as trained
from functa.runtime import config
from functa.training.tasks import generation
from tests.cli.functaset_tools_test import load, refusal
from tests.support import functaset_sets, generator_runs

sample = load("sample")
STEPS = 4  # of the tiny schedule


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return generator_runs.make(tmp_path_factory.mktemp("sample") / "run")


@pytest.fixture(scope="module")
def generator(run):
    return trained.load_generator(run)


@pytest.fixture(autouse=True)
def loaded_once(run, generator, monkeypatch):
    """Reading checkpoints would take most of the time of these tests."""
    load_generator = trained.load_generator
    monkeypatch.setattr(
        trained,
        "load_generator",
        lambda workdir: generator if workdir == str(run) else load_generator(workdir),
    )


def records(run, out, *arguments):
    """Of the functaset that a call writes, all of them."""
    options = ["--functaset", "--scale=1", *arguments]
    assert sample.main([str(run), f"--out={out}", *options]) == 0
    source = reader.open_functaset(out / "functaset", field_digest=None).source("train", "none")
    return source.read(np.arange(source.num_examples))


def test_a_sample_depends_on_its_number_and_not_on_the_count(run, generator, tmp_path):
    few = records(run, tmp_path / "few", "--count=5")
    many = records(run, tmp_path / "many", "--count=23")  # more than a block of 16
    for name in ("latents", "label", "id"):
        np.testing.assert_array_equal(few[name], many[name][:5])
    assert many["label"].tolist() == [n % 10 for n in range(23)]
    # What the stage generate would draw, rounded to float16.
    direct = directly(generator, many["label"])
    np.testing.assert_allclose(many["latents"], direct, rtol=2e-3, atol=2e-3)


def pixels(file):
    with Image.open(file) as image:
        return np.asarray(image).astype(int)


def directly(generator, labels):
    """Samples by the task's own sampler."""
    sampler = generation.make_sampler(generator.config, generator.normalization)
    numbers = np.arange(len(labels), dtype=np.int32)
    return np.asarray(jax.jit(sampler)(generator.params, numbers, labels).latents)


@pytest.mark.parametrize(
    "option", ["--seed=1", "--steps=3", "--solver=euler", "--guidance=3", "--classes=4"]
)
def test_every_option_changes_the_samples(run, generator, tmp_path, option):
    chosen = dict(numbers=np.arange(2, dtype=np.int32), labels=np.full(2, 3, np.int32))
    usual = samples.draw(generator, generator.config, **chosen)
    other = records(run, tmp_path / "other", "--count=2", "--classes=3", option)
    assert np.abs(usual - other["latents"]).max() > 1e-2


def test_no_class_is_the_null_class(run, generator, tmp_path):
    drawn = records(run, tmp_path / "none", "--count=3", "--classes=none")
    assert drawn["label"].tolist() == [-1] * 3
    direct = directly(generator, np.full(3, 10, np.int32))
    np.testing.assert_allclose(drawn["latents"], direct, rtol=2e-3, atol=2e-3)
    told = json.loads((tmp_path / "none" / "samples.json").read_text())
    assert told["labels"] == [-1] * 3
    assert told["guidance"]["scale"] == 1


def test_the_functaset_is_whole_and_opens_elsewhere(run, generator, tmp_path):
    written = records(run, tmp_path / "out", "--count=12", "--classes=7,2")
    directory = tmp_path / "out" / "functaset"
    digest = generator.functaset.manifest.field_digest
    assert functaset_sets.problems(directory, field_digest=digest) == []
    source = tfds.builder_from_directory(directory).as_data_source("train")
    assert [record["label"] for record in source] == [7, 2] * 6
    np.testing.assert_array_equal([record["latents"] for record in source], written["latents"])
    manifest = reader.read_manifest(directory)
    assert manifest.config["sampled"]["functaset_digest"] == generator.functaset.manifest.digest
    assert {name: split["examples"] for name, split in manifest.splits.items()} == {
        "train": 12, "validation": 0, "test": 0,
    }  # fmt: skip


def test_sheets_have_a_row_a_class_and_a_resolution_a_scale(run, generator, tmp_path):
    drawn = records(run, tmp_path / "out", "--count=5", "--classes=7,2", "--scale=1,3")
    for scale in (1, 3):
        page = pixels(tmp_path / "out" / f"samples_{scale}x.png")
        side = 8 * scale
        assert page.shape == (2 * side + 1, 3 * side + 2)
        decode = sharded_sampling.make_decoder(
            generator.field, generator.field_params, batch_size=5, scale=scale
        )
        images = np.rint(255 * decode(drawn["latents"].astype(np.float32))[..., 0])
        for number, image in enumerate(images):
            row, column = number % 2 * (side + 1), number // 2 * (side + 1)
            there = page[row : row + side, column : column + side]
            assert np.abs(there - image).max() <= 1  # latents were rounded for the functaset
        assert np.all(page[side + 1 :, 2 * side + 2 :] == 128)  # class 2 has one sample less


def test_one_class_makes_a_square_sheet(run, tmp_path):
    records(run, tmp_path / "out", "--count=4", "--classes=1")
    assert pixels(tmp_path / "out" / "samples_1x.png").shape == (17, 17)


def test_fewer_samples_than_classes_make_a_square_sheet(run, tmp_path):
    records(run, tmp_path / "out", "--count=4")
    assert pixels(tmp_path / "out" / "samples_1x.png").shape == (17, 17)


def test_a_sheet_shows_as_many_as_its_pixels_allow(run, tmp_path, monkeypatch):
    monkeypatch.setattr(sample, "_MOST_PIXELS", 16 * 16 * 6)
    records(run, tmp_path / "out", "--count=30", "--scale=1,2", "--film")
    assert pixels(tmp_path / "out" / "samples_1x.png").shape == (10 * 9 - 1, 3 * 9 - 1)  # 24 of 30
    assert pixels(tmp_path / "out" / "samples_2x.png").shape == (2 * 17 - 1, 3 * 17 - 1)  # 6
    with Image.open(tmp_path / "out" / "film.gif") as film:
        assert film.size == (16, 16)  # one image at twice the size, in four frames


def test_a_film_is_no_larger_than_its_side(run, tmp_path, monkeypatch):
    monkeypatch.setattr(sample, "_FILMED_SIDE", 16)
    records(run, tmp_path / "out", "--count=20", "--film", "--scale=4,2")
    with Image.open(tmp_path / "out" / "film.gif") as film:
        assert film.size == pixels(tmp_path / "out" / "samples_2x.png").shape[::-1]


def test_a_film_has_a_frame_a_step_and_is_a_sheet_a_step(run, tmp_path):
    records(run, tmp_path / "out", "--count=20", "--film", "--scale=2")
    with Image.open(tmp_path / "out" / "film.gif") as film:
        assert film.n_frames == STEPS
        assert film.info["loop"] == 0
        first = np.asarray(film.convert("L")).astype(int)
        film.seek(STEPS - 1)
        last = np.asarray(film.convert("L")).astype(int)
    assert last.shape == pixels(tmp_path / "out" / "samples_2x.png").shape
    assert np.abs(last - first).max() > 3


def test_a_strip_leads_from_sample_to_sample(run, generator, tmp_path):
    assert sample.main([str(run), "--interpolate=3,14", "--scale=2", f"--out={tmp_path}"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["interpolation_2x.png"]
    assert pixels(tmp_path / "interpolation_2x.png").shape == (16, 9 * 17 - 1)
    chosen = dict(numbers=np.array([3, 14], np.int32), labels=np.array([3, 4], np.int32))
    strip = samples.strip_of_samples(generator, generator.config, **chosen, count=5)
    ends = samples.draw(generator, generator.config, **chosen)
    np.testing.assert_allclose(strip[[0, -1]], ends, rtol=1e-4, atol=1e-4)
    steps = np.linalg.norm((strip[1:] - strip[:-1]).reshape(4, -1), axis=1)
    assert steps.max() < np.linalg.norm(ends[1] - ends[0])


def test_a_strip_leads_from_image_to_image(run, generator, tmp_path):
    pair = "--interpolate=test:9,test:2"
    assert sample.main([str(run), pair, "--scale=1", f"--out={tmp_path / 'a'}"]) == 0
    latents, labels = samples.encoded_pair(generator, (9, 2))
    source = generator.functaset.source("test", cache="none")
    for k, index in enumerate((9, 2)):
        record = source.read(np.array([index]))
        np.testing.assert_array_equal(latents[k], record["latents"][0].astype(np.float32))
        assert labels[k] == record["label"][0]
    fine = config.from_dict(config.to_dict(generator.config))
    fine.generate.schedule.steps = 60
    strip = samples.strip_of_latents(generator, fine, latents=latents, labels=labels, count=3)
    np.testing.assert_allclose(strip[[0, -1]], latents, atol=0.1)
    message = "the test images are 0 to 29, not 30"
    with pytest.raises(ValueError, match=message):
        samples.encoded_pair(generator, (30, 2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--classes=3,10"], "--classes=10: the classes of this run are 0 to 9"),
        (["--classes=-1"], "classes look like 0,3, all or none"),
        (["--classes=none", "--guidance=2"], "--classes=none asks for no class"),
        (["--count=0"], "--count=0 must be from 1 to"),
        (["--count=3000000000"], "--count=3000000000 must be from 1 to 1e+06"),
        (["--seed=99999999999999999999999"], "--seed=99999999999999999999999 must be from 0 to"),
        (["--seed=-1"], "--seed=-1 must be from 0"),
        (["--interpolate=99999999999,3"], "--interpolate=99999999999 must be from 0"),
        (["--steps=0"], "generate.schedule: the schedule karras cannot be built: steps=0"),
        (["--scale=0"], "scales look like 1,2,4"),
        (["--scale=1,1251"], "--scale=1251: an image of 8x8 may have 100,000,000 pixels, at 1250"),
        (["--interpolate=1,test:2"], "a pair looks like 3,17 or test:3,test:17"),
        (["--interpolate=test:1,test:400"], "the test images are 0 to 29, not 400"),
        (["--interpolate=1,2", "--film"], "without --film and --functaset"),
        (["--guidance=-1"], "guidance"),
        (["--solver=magic"], "invalid choice"),
    ],
)
def test_bad_arguments_are_told(run, tmp_path, capsys, arguments, message):
    told = refusal(sample.main, [run, f"--out={tmp_path / 'out'}", *arguments], capsys)
    assert message in told
    assert not (tmp_path / "out").exists()


def test_what_is_there_is_not_written_over(run, tmp_path, capsys):
    (tmp_path / "kept").write_text("")
    assert "is there and not an empty folder" in refusal(
        sample.main, [run, f"--out={tmp_path}"], capsys
    )
    file = tmp_path / "kept"
    assert "is there" in refusal(sample.main, [run, f"--out={file}"], capsys)


def test_a_run_without_a_generator_is_told(tmp_path, capsys):
    told = refusal(sample.main, [tmp_path, f"--out={tmp_path / 'out'}"], capsys)
    assert "is not the directory of a run" in told


def test_a_model_that_knows_no_null_class_is_not_guided(tmp_path, capsys):
    changes = {"generate.label_dropout": 0.0, "generate.guidance.scale": 1.0, "generate.sweep": ()}
    run = generator_runs.make(tmp_path / "run", **changes)
    arguments = [run, f"--out={tmp_path / 'out'}"]
    told = refusal(sample.main, [*arguments, "--guidance=2"], capsys)
    assert "generate.guidance.scale=2 wants a model that knows images of any class" in told
    told = refusal(sample.main, [*arguments, "--classes=none"], capsys)
    assert "trained with generate.label_dropout=0" in told
