"""functa inpaint: table, sheet, and refused arguments."""

import json

import numpy as np
import pytest
from PIL import Image

from functa.cli import inpaint, main
from functa.data import images as images_lib
from functa.diffusion.inpainter import METHODS
from functa.diffusion.observation import DEGRADATIONS
from functa.runtime import config as config_lib
from tests.support import generator_runs


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return generator_runs.make(tmp_path_factory.mktemp("inpaint") / "run")


def inpaint_command(run, out, *arguments):
    return main.main(["inpaint", str(run), f"--out={out}", *arguments])


def test_writes_the_table_and_a_sheet_with_visible_pixels_kept(run, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["--task=half", "--images=5", "--samples=2", "--steps=3"]
    assert inpaint_command(run, out, *arguments) == 0
    printed = capsys.readouterr().out
    record = json.loads((out / "inpainting.json").read_text())
    assert record["images"] == 5
    assert set(record["methods"]) == set(METHODS)
    for row in record["methods"].values():
        assert f"{row['psnr']:7.2f}" in printed
    with Image.open(out / "inpainting.png") as sheet:
        assert sheet.size == (6 * 34 - 2, 5 * 34 - 2)
        pixels = np.asarray(sheet)
    splits = images_lib.open_splits(**config_lib.load(run).data)
    first = splits["test"].read(np.array([0]))["image"][0, :, :, 0].repeat(4, 0).repeat(4, 1)
    np.testing.assert_array_equal(pixels[:32, :32], first)
    for column in range(2, 6):
        right = pixels[:32, 34 * column + 16 : 34 * column + 32]
        np.testing.assert_array_equal(right, first[:, 16:])
    train = splits["train"].read(np.arange(splits["train"].num_examples))["image"]
    left = pixels[:32:4, 34 * 3 : 34 * 3 + 16 : 4].astype(float)
    np.testing.assert_allclose(left, train.mean(axis=0)[:, :4, 0], atol=0.51)


def test_metrics_are_decibels_and_gains_over_no_prior():
    result = {"mse_no_prior": np.array([0.1, 0.001]), "mse_sample": np.array([0.01, 0.001])}
    metrics = inpaint.method_metrics(result, "sample")
    expected = {"psnr": 25, "standard_error": 5, "gain": 5, "gain_standard_error": 5}
    assert {key: metrics[key] for key in expected} == pytest.approx(expected, abs=1e-4)
    assert metrics["psnr_of_mean_mse"] == pytest.approx(-10 * np.log10(0.0055), abs=1e-4)


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        (["--images=1"], "--images=1"),
        (["--images=97"], "--images=97"),
        (["--samples=0", "--steps=0"], "--samples=0"),
        (["--samples=100000000"], "--samples=100000000"),
        (["--seed=-1"], "--seed=-1"),
    ],
)
def test_invalid_arguments_are_refused_before_compiling(
    run, tmp_path, capsys, monkeypatch, arguments, key
):
    monkeypatch.setattr(inpaint, "Inpainter", None)
    assert inpaint_command(run, tmp_path / "out", "--task=half", *arguments) == 2
    assert key in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_images_that_blocks_do_not_divide_are_refused(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(inpaint, "Inpainter", None)
    monkeypatch.setitem(DEGRADATIONS, "lowres4", DEGRADATIONS["lowres4"]._replace(pool=3))
    assert inpaint_command(run, tmp_path / "out", "--task=lowres4") == 2
    assert "3x3" in capsys.readouterr().err


def test_batches_are_bounded_by_their_pixels(monkeypatch):
    batches = []

    def compare_methods(inpainter, images, *, image_ids, samples, mean_image):
        batches.append(len(images) * samples)
        return {"mse": np.asarray(image_ids)}

    monkeypatch.setattr(inpaint, "compare_methods", compare_methods)
    image_ids = np.arange(40)
    for side, expected in ((8, 256), (64, 64), (256, 8)):
        images, batches[:] = np.zeros((40, side, side, 1), np.float32), []
        result = inpaint.compare_in_batches(
            None, images, image_ids=image_ids, samples=8, mean_image=images[0]
        )
        np.testing.assert_array_equal(result["mse"], image_ids)
        assert set(batches) == {expected}


def test_unsuitable_directories_and_generators_are_refused(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    run = tmp_path / "run"
    assert inpaint_command(run, tmp_path, "--task=half") == 2
    assert "--out" in capsys.readouterr().err
    assert inpaint_command(run, tmp_path / "out", "--task=half") == 2
    assert str(run) in capsys.readouterr().err
    changes = {"label_dropout": 0.0, "guidance.scale": 1.0, "guidance_sweep": ()}
    generator_runs.make(run, **{f"generate.{key}": value for key, value in changes.items()})
    assert inpaint_command(run, tmp_path / "out", "--task=half") == 2
    assert "label_dropout" in capsys.readouterr().err
