"""functa analyse: output files, and problems that it reports before it compiles."""

import json

import numpy as np
import pytest
from PIL import Image

from functa.cli import analyse
from functa.cli.main import main
from functa.pipeline import load
from functa.runtime import config as config_lib
from functa.training import checkpoint
from tests.support import analysis_runs


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("analyse") / "run"
    analysis_runs.make(path)
    return path


def test_all_measures_as_text_json_and_chart(directory, tmp_path, capsys):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (64, 80), np.uint8)
    Image.fromarray(noise).save(pictures / "a.png")
    options = ["--images=4", f"--pictures={pictures}", "--scales=2"]
    file = tmp_path / "a.json"
    assert main(["analyse", str(directory), *options, f"--json={file}"]) == 0
    output, result = capsys.readouterr().out, json.loads(file.read_text())
    assert result["field_digest"] == checkpoint.digest(load.load_field(directory)[1])
    assert list(result["tables"]) == [
        "steps", "free", "quantization", "rate_distortion", "resolution",
        "latents_neighbors", "latents_midpoints", "latents_noise",
    ]  # fmt: skip
    for table in result["tables"].values():
        assert table["title"] in output
        assert all(row.keys() == table["columns"].keys() for row in table["rows"])
    methods = {row["method"] for row in result["tables"]["rate_distortion"]["rows"]}
    assert methods == {"functa", "PCA", "JPEG", "WebP"}
    assert "<svg" in (directory / "analysis.svg").read_text()


def test_json_instead_of_text(directory, capsys):
    """The data directory is not needed: the digits are part of scikit-learn."""
    options = ["--images=4", "--measure=quantization", "--json=-", "--data-dir=elsewhere"]
    assert main(["analyse", str(directory), *options]) == 0
    assert list(json.loads(capsys.readouterr().out)["tables"]) == ["quantization"]


def test_images_are_evenly_spread_over_the_split(directory, monkeypatch):
    images = []
    monkeypatch.setitem(analyse.MEASURES, "steps", lambda field: images.append(field.images) or {})
    assert main(["analyse", str(directory), "--measure=steps", "--images=40"]) == 0
    assert main(["analyse", str(directory), "--measure=steps"]) == 0
    some, whole = images
    assert (len(some), len(whole)) == (40, 96)  # the whole split, where it is small
    np.testing.assert_array_equal(some[[0, -1]], whole[[0, -1]])


@pytest.mark.parametrize(
    ("options", "messages"),
    [
        (["--measure=speed,steps"], ["speed"]),
        (["--measure="], ["--measure"]),
        (["--split=dev"], ["--split", "dev"]),
        (["--scales=2x"], ["2x"]),
        (["--scales=1,2"], ["1,2"]),
        (["--images=1"], ["--images=1"]),
        (["--images=97"], ["--images=97", "96"]),
        (["--measure=resolution"], ["--pictures"]),
        (["--pictures=nowhere"], ["nowhere"]),
        (
            ["--measure=steps", "--pictures=p", "--scales=2", "--chart=c.svg"],
            ["--pictures", "--scales", "--chart"],
        ),
        (["--chart=nowhere/c.svg", "--json=nowhere/a.json"], ["--chart", "--json"]),
    ],
)
def test_problems_are_reported_before_anything_is_measured(
    directory, capsys, monkeypatch, options, messages
):
    monkeypatch.setattr(analyse, "MEASURES", dict.fromkeys(analyse.MEASURES))  # none can be called
    try:
        status = main(["analyse", str(directory), *options])
    except SystemExit as error:  # of argparse
        status = error.code
    assert status == 2
    error = capsys.readouterr().err
    assert all(message in error for message in messages), error


def test_incomplete_runs_are_refused(directory, tmp_path, capsys):
    assert main(["analyse", str(tmp_path / "no")]) == 2
    config_lib.freeze(config_lib.load(directory), tmp_path / "begun")
    assert main(["analyse", str(tmp_path / "begun")]) == 2
    assert "meta_learn" in capsys.readouterr().err


def test_a_split_of_one_image_is_too_small(tmp_path, capsys):
    config, _, _ = analysis_runs.make(tmp_path / "run")
    config = config.copy_and_resolve_references()
    config.data.max_examples = 1
    config_lib.write_json(tmp_path / "run" / "config.json", config_lib.to_dict(config))
    assert main(["analyse", str(tmp_path / "run"), "--measure=steps"]) == 2
    assert "--images" in capsys.readouterr().err
