"""functa export: the files hold exactly the images that the stage generate evaluates."""

import shutil

import numpy as np
import pytest
from etils import epath
from PIL import Image

from functa.cli.main import main
from functa.evaluation import generative_metrics
from functa.pipeline import stages
from functa.pipeline.run import Run
from functa.runtime import config as config_lib


@pytest.fixture(scope="module")
def workdir(finished, tmp_path_factory):
    return epath.Path(shutil.copytree(finished[0], tmp_path_factory.mktemp("export") / "run"))


def evaluated_images(workdir, monkeypatch):
    """The image sets that the stage generate evaluates, by running its end again."""
    image_sets = {}
    compute = generative_metrics.image_set_metrics

    def record(extractor, **settings):
        image_sets.update(settings)
        return compute(extractor, **settings)

    monkeypatch.setattr(generative_metrics, "image_set_metrics", record)
    stages.generate(Run(config_lib.load(workdir), workdir, say=lambda line: None))
    return image_sets


def read_pngs(directory):
    """Images [n, h, w, 1] uint8, in the order of their names."""
    images = [np.asarray(Image.open(path)) for path in sorted(directory.iterdir())]
    return np.stack(images)[..., None]


def test_png_files_are_the_evaluated_images(workdir, tmp_path, monkeypatch):
    expected = evaluated_images(workdir, monkeypatch)
    assert main(["export", str(workdir), "--to=png", f"--out={tmp_path / 'out'}"]) == 0
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == ["generated", "real_test"]
    for directory, name in (("generated", "samples"), ("real_test", "test")):
        images = read_pngs(out / directory)
        assert len(images) > 40
        np.testing.assert_array_equal(images, np.rint(expected[name] * np.float32(255)))


def test_existing_files_and_incomplete_runs_are_refused(workdir, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    arguments = ["--to=png", f"--out={tmp_path / 'out'}"]
    assert main(["export", str(workdir), *arguments]) == 2
    assert "--out" in capsys.readouterr().err
    arguments = ["--to=png", f"--out={tmp_path / 'new'}"]
    assert main(["export", str(tmp_path / "none"), *arguments]) == 2
    shutil.rmtree(workdir / "generate" / "samples")
    assert main(["export", str(workdir), *arguments]) == 2
    assert "samples" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
