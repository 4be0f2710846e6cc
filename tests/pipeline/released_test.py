"""Models: a run as arrays gives the results of the run; released models work by name."""

import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

import functa
from functa.cli.main import main
from functa.pipeline import released
from functa.pipeline.load import load_generator
from tests.api_test import EXAMPLE

HIDDEN = np.eye(8, dtype=bool)


@pytest.fixture(scope="module")
def model(finished, tmp_path_factory):
    directory = tmp_path_factory.mktemp("model") / "model"
    assert main(["export", str(finished[0]), "--to=model", f"--out={directory}"]) == 0
    return directory


def test_a_model_gives_the_results_of_its_run(finished, model, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    run, copy = functa.load(finished[0]), functa.load(model)
    images = run.images("test")[:4]
    latents = run.encode(images)
    np.testing.assert_array_equal(copy.encode(images), latents)
    np.testing.assert_array_equal(copy.classify(latents), run.classify(latents))
    np.testing.assert_array_equal(copy.sample(4, labels=3), run.sample(4, labels=3))
    inpainted = [r.inpaint(images[:1], HIDDEN, steps=2) for r in (run, copy)]
    np.testing.assert_allclose(*inpainted, atol=1e-5)
    assert copy.metrics == run.metrics
    assert copy.class_names == run.class_names
    # The stage encode has augmented the training images; a model encodes the images themselves.
    stored, encoded = run.functaset["train"], copy.functaset["train"]
    originals = np.flatnonzero(stored[:]["copy"] == 0)
    assert len(encoded) == len(originals)
    by_id = np.argsort(stored[originals]["id"])
    np.testing.assert_allclose(
        encoded[np.argsort(encoded[:]["id"])]["latents"],
        stored[originals[by_id]]["latents"],
        atol=2e-3,
    )
    assert functa.load(model).functaset_directory == copy.functaset_directory
    assert copy.functaset_directory.is_relative_to(tmp_path)


def test_a_model_has_no_images_and_no_latents(model):
    names = {str(file.relative_to(model)) for file in model.rglob("*") if file.is_file()}
    assert {name for name in names if name.endswith(".npz")} == {
        "meta_learn/field.npz",
        "classify/best.npz",
        "generate/best.npz",
        "generate/denoising_error.npz",
    }
    assert not [name for name in names if "array_record" in name]


@pytest.mark.parametrize("damage", ["flip", "format", "missing"])
def test_a_damaged_model_is_named(model, tmp_path, damage):
    copy = shutil.copytree(model, tmp_path / "model")
    file = copy / "generate" / "best.npz"
    if damage == "flip":
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    elif damage == "missing":
        file.unlink()
    else:
        description = json.loads((copy / "model.json").read_text())
        (copy / "model.json").write_text(json.dumps(description | {"format": 0}))
    with pytest.raises(ValueError, match="model.json|best.npz|format"):
        load_generator(copy)


def test_a_model_of_another_shape_is_refused(model, tmp_path):
    copy = shutil.copytree(model, tmp_path / "model")
    config = json.loads((copy / "config.json").read_text())
    config["field"]["width"] += 8
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"field\.npz"):
        functa.load(copy)


def test_a_misspelt_name_gets_a_suggestion():
    with pytest.raises(ValueError, match="did you mean digits"):
        functa.load("digist")
    with pytest.raises(ValueError, match="digits"):
        functa.load("something/else")


def test_a_run_directory_comes_before_a_released_model(finished, tmp_path, monkeypatch):
    shutil.copytree(finished[0], tmp_path / "digits")
    monkeypatch.chdir(tmp_path)
    assert not released.is_model(functa.load("digits").workdir)


def test_released_models_are_small():
    folders = [pathlib.Path(released.find_run(name)) for name in released.names()]
    sizes = [file.stat().st_size for folder in folders for file in folder.rglob("*.*")]
    assert 1e6 < sum(sizes) < 20e6


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name == "digits" else pytest.mark.slow)
        for name in released.names()
    ],
)
def test_the_example_with_a_released_model(name, program_env, tmp_path, request):
    if name != "digits":
        prepare(name, request.getfixturevalue("test_data"), tmp_path / "data")
    result = subprocess.run(
        [sys.executable, "-c", EXAMPLE.replace("runs/digits", name).split("assert images")[0]],
        env={**program_env, "XDG_CACHE_HOME": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert result.returncode == 0, result.stderr


def prepare(name, test_data, data_dir):
    """Writes a part of the data set of a released model, more than its validation split."""
    source = data_dir.parent / "part.npz"
    if name == "mnist":
        with np.load(test_data / "mnist.npz") as arrays:
            counts = {"x_train": 11_000, "y_train": 11_000, "x_test": 500, "y_test": 500}
            np.savez(source, **{key: arrays[key][:count] for key, count in counts.items()})
    else:
        unpack = [sys.executable, test_data / "unpack_cifar10.py", source]
        unpack += ["--train", "5500", "--test", "500"]
        subprocess.run(unpack, check=True, capture_output=True)
    data_set = {"cifar10_spatial": "cifar10"}.get(name, name)
    assert main(["prepare", data_set, f"--source={source}", f"--data-dir={data_dir}"]) == 0
