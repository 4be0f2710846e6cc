"""functa sample: samples, sheets, animations, interpolations, and refused arguments."""

import json

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

import functa
from functa.cli import main, sample
from functa.data.functaset import reader
from functa.fields.decoder import make_decoder
from tests.support import functaset_sets, generator_runs

STEPS = 4  # of the schedule of digits:tiny
BATCH = dict(seed=0, batch_size=16)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return generator_runs.make(tmp_path_factory.mktemp("sample") / "run")


@pytest.fixture(scope="module")
def loaded(run):
    return functa.load(run)


@pytest.fixture(scope="module")
def trained(loaded):
    return loaded.generator


@pytest.fixture(autouse=True)
def load_once(run, loaded, monkeypatch):
    """Reading checkpoints would take most of the time of these tests."""
    load = functa.load

    def load_or_reuse(workdir, *, data_dir):
        return loaded if workdir == str(run) else load(workdir, data_dir=data_dir)

    monkeypatch.setattr(functa, "load", load_or_reuse)


def sample_command(run, out, *arguments):
    """Exit status of the command, also for arguments that argparse refuses."""
    try:
        return main.main(["sample", str(run), f"--out={out}", *arguments])
    except SystemExit as error:
        return error.code


def sample_records(run, out, *arguments):
    """All records of the functaset that the command writes."""
    assert sample_command(run, out, "--functaset", "--scale=1", *arguments) == 0
    source = reader.open_functaset(out / "functaset", field_digest=None).source("train")
    return source.read(np.arange(source.num_examples))


def read_image(path):
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


def test_samples_depend_on_their_number_and_not_on_the_count(run, trained, tmp_path):
    few = sample_records(run, tmp_path / "few", "--count=5")
    many = sample_records(run, tmp_path / "many", "--count=23")  # more than a batch of 16
    for name in ("latents", "label", "id"):
        np.testing.assert_array_equal(few[name], many[name][:5])
    assert many["label"].tolist() == [n % 10 for n in range(23)]
    numbers = np.arange(23, dtype=np.int32)
    latents = trained.sample(numbers=numbers, labels=many["label"], **BATCH)
    # The functaset stores float16.
    np.testing.assert_allclose(many["latents"], latents, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(
    "option", ["--seed=1", "--steps=3", "--solver=euler", "--guidance=3", "--classes=4"]
)
def test_options_change_the_samples(run, trained, tmp_path, option):
    numbers, labels = np.arange(2, dtype=np.int32), np.full(2, 3, np.int32)
    default = trained.sample(numbers=numbers, labels=labels, **BATCH)
    changed = sample_records(run, tmp_path / "out", "--count=2", "--classes=3", option)
    assert np.abs(default - changed["latents"]).max() > 1e-2


def test_classes_none_samples_the_null_class(run, trained, tmp_path):
    records = sample_records(run, tmp_path / "out", "--count=3", "--classes=none")
    assert records["label"].tolist() == [-1] * 3
    numbers, labels = np.arange(3, dtype=np.int32), np.full(3, 10, np.int32)
    latents = trained.sample(numbers=numbers, labels=labels, **BATCH)
    np.testing.assert_allclose(records["latents"], latents, rtol=2e-3, atol=2e-3)
    settings = json.loads((tmp_path / "out" / "samples.json").read_text())
    assert settings["labels"] == [-1] * 3
    assert settings["guidance"]["scale"] == 1


def test_functaset_is_valid_and_records_its_source(run, trained, tmp_path):
    records = sample_records(run, tmp_path / "out", "--count=12", "--classes=7,2")
    directory = tmp_path / "out" / "functaset"
    digest = trained.functaset.manifest.field_digest
    assert functaset_sets.problems(directory, field_digest=digest) == []
    source = tfds.builder_from_directory(directory).as_data_source("train")
    assert [record["label"] for record in source] == [7, 2] * 6
    np.testing.assert_array_equal([record["latents"] for record in source], records["latents"])
    manifest = reader.read_manifest(directory)
    assert manifest.config["sampled"]["functaset_digest"] == trained.functaset.manifest.digest
    counts = {name: split["examples"] for name, split in manifest.splits.items()}
    assert counts == {"train": 12, "validation": 0, "test": 0}


def test_sheets_have_one_row_per_class_at_every_scale(run, trained, tmp_path):
    records = sample_records(run, tmp_path / "out", "--count=5", "--classes=7,2", "--scale=1,3")
    for scale in (1, 3):
        sheet = read_image(tmp_path / "out" / f"samples_{scale}x.png")
        side = 8 * scale
        assert sheet.shape == (2 * side + 1, 3 * side + 2)
        decode = make_decoder(trained.field, trained.field_params, batch_size=5, scale=scale)
        images = np.rint(255 * decode(records["latents"].astype(np.float32))[..., 0])
        for number, image in enumerate(images):
            row, column = number % 2 * (side + 1), number // 2 * (side + 1)
            cell = sheet[row : row + side, column : column + side]
            assert np.abs(cell - image).max() <= 1  # the functaset stores float16
        assert np.all(sheet[side + 1 :, 2 * side + 2 :] == 128)  # class 2 has one sample less


@pytest.mark.parametrize("arguments", [["--count=4", "--classes=1"], ["--count=4"]])
def test_sheets_of_one_or_of_incomplete_classes_are_square(run, tmp_path, arguments):
    sample_records(run, tmp_path / "out", *arguments)
    assert read_image(tmp_path / "out" / "samples_1x.png").shape == (17, 17)


def test_sheets_and_animations_are_bounded_by_their_pixels(run, tmp_path, monkeypatch):
    monkeypatch.setattr(sample, "_MAX_PIXELS", 16 * 16 * 6)
    sample_records(run, tmp_path / "out", "--count=30", "--scale=1,2", "--animation")
    shapes = [read_image(tmp_path / "out" / f"samples_{scale}x.png").shape for scale in (1, 2)]
    assert shapes == [(10 * 9 - 1, 3 * 9 - 1), (2 * 17 - 1, 3 * 17 - 1)]  # 24 and 6 of 30
    with Image.open(tmp_path / "out" / "animation.gif") as animation:
        assert animation.size == (16, 16)  # four frames of one image


def test_animation_shows_every_step_at_the_largest_allowed_scale(run, tmp_path, monkeypatch):
    monkeypatch.setattr(sample, "_MAX_ANIMATION_SIDE", 16)
    sample_records(run, tmp_path / "out", "--count=20", "--animation", "--scale=4,2")
    sheet = read_image(tmp_path / "out" / "samples_2x.png")
    with Image.open(tmp_path / "out" / "animation.gif") as animation:
        assert (animation.n_frames, animation.size) == (STEPS, sheet.shape[::-1])
        first = np.asarray(animation.convert("L")).astype(int)
        animation.seek(STEPS - 1)
        last = np.asarray(animation.convert("L")).astype(int)
    assert np.abs(last - first).max() > 3


@pytest.mark.parametrize("pair", ["3,14", "test:9,test:2"])
def test_interpolation_writes_a_strip(run, tmp_path, pair):
    assert sample_command(run, tmp_path, f"--interpolate={pair}", "--scale=2") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["interpolation_2x.png"]
    assert read_image(tmp_path / "interpolation_2x.png").shape == (16, 9 * 17 - 1)


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        (["--classes=3,10"], "--classes=10"),
        (["--classes=none", "--guidance=2"], "--guidance"),
        (["--count=0"], "--count=0"),
        (["--count=3000000000"], "--count=3000000000"),
        (["--seed=-1"], "--seed=-1"),
        (["--seed=99999999999999999999999"], "--seed=99999999999999999999999"),
        (["--interpolate=99999999999,3"], "--interpolate=99999999999"),
        (["--interpolate=test:1,test:400"], "400"),
        (["--interpolate=1,2", "--animation"], "--animation"),
        (["--steps=0"], "steps=0"),
        (["--scale=1,1251"], "--scale=1251"),
        (["--guidance=-1"], "scale=-1"),
        (["--classes=-1"], "--classes"),
        (["--scale=0"], "--scale"),
        (["--interpolate=1,test:2"], "--interpolate"),
        (["--solver=magic"], "--solver"),
    ],
)
def test_invalid_arguments_are_refused(run, tmp_path, capsys, arguments, key):
    assert sample_command(run, tmp_path / "out", *arguments) == 2
    assert key in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_existing_output_and_missing_runs_are_refused(run, tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("")
    for out in (tmp_path, file):
        assert sample_command(run, out) == 2
        assert "--out" in capsys.readouterr().err
    assert sample_command(tmp_path, tmp_path / "out") == 2
    assert str(tmp_path) in capsys.readouterr().err


def test_generators_without_null_class_are_not_guided(tmp_path, capsys):
    changes = {"label_dropout": 0.0, "guidance.scale": 1.0, "guidance_sweep": ()}
    changes = {f"generate.{key}": value for key, value in changes.items()}
    run = generator_runs.make(tmp_path / "run", **changes)
    for argument in ("--guidance=2", "--classes=none"):
        assert sample_command(run, tmp_path / "out", argument) == 2
        assert "label_dropout" in capsys.readouterr().err
