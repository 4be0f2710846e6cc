"""`functa encode` on a finished run: pictures, folders and data sets."""

import csv
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

import functa
from functa.cli.main import main
from functa.data.picture_files import read_picture
from functa.runtime import image_io


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder with a PNG and a JPEG file of different sizes in each of two class folders."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for name, shape in (("a/0.png", (20, 30)), ("a/1.jpg", (9, 8)), ("b/0.png", (8, 8))):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(folder / name)
    return folder


def test_pictures_become_latents_and_a_sheet(finished, pictures, tmp_path, capsys):
    out = tmp_path / "out"
    file = pictures / "a" / "0.png"
    assert main(["encode", str(finished[0]), str(file), str(pictures / "b"), f"--out={out}"]) == 0
    run = functa.load(finished[0])
    image = read_picture(file, image_shape=run.image_shape, resize="crop")
    with np.load(out / "latents.npz") as arrays:
        np.testing.assert_allclose(arrays["latents"][0], run.encode(image), atol=1e-5)
        assert list(arrays["names"]) == [str(file), str(pictures / "b" / "0.png")]
        decoded = run.decode(arrays["latents"][0])
        large = image_io.to_uint8(run.decode(arrays["latents"], size=(24, 24)))
    latents = f"--latents={out / 'latents.npz'}"
    decode = ["decode", str(finished[0]), latents, "--scale=3", f"--out={tmp_path / 'decoded'}"]
    assert main(decode) == 0
    for number in (0, 1):
        with Image.open(tmp_path / "decoded" / f"latents_{number:06d}_24x24.png") as png:
            np.testing.assert_allclose(np.asarray(png, int), large[number, ..., 0], atol=1)
    assert main([*decode[:2], "--latents=missing.npz", *decode[3:]]) == 2
    assert main([*decode, "--split=test"]) == 2
    with np.load(out / "latents.npz") as arrays:
        assert arrays["psnr"][0] == pytest.approx(functa.psnr(decoded, image), abs=1e-3)
    with Image.open(out / "sheet.png") as sheet:
        assert sheet.size == (3 * 32 + 4, 2 * 32 + 2)
    assert str(file) in capsys.readouterr().out


@pytest.mark.parametrize("folder", ["", "a"])
def test_a_folder_becomes_a_functaset(finished, pictures, tmp_path, folder):
    out = tmp_path / "functaset"
    source = pictures / folder if folder else pictures
    arguments = [
        "encode",
        str(finished[0]),
        f"--source={source}",
        f"--out={out}",
        "--dtype=float32",
    ]
    assert main(arguments) == 0
    assert main(["verify", str(out)]) == 0
    assert main(["inspect", str(out), f"--field={finished[0]}"]) == 0
    assert (tmp_path / "functaset_train.png").exists()
    records = tfds.builder_from_directory(out).as_data_source("train")
    with (out / "psnr.csv").open() as file:
        rows = list(csv.DictReader(file))
    run = functa.load(finished[0])
    for record, row in zip(records, rows, strict=True):
        image = read_picture(row["file"], image_shape=run.image_shape, resize="crop")
        np.testing.assert_allclose(record["latents"], run.encode(image), atol=1e-5)
        assert float(row["psnr"]) == pytest.approx(record["psnr"], abs=1e-3)
    assert [record["label"] for record in records] == ([-1, -1] if folder else [0, 0, 1])
    written = (out / "manifest.json").stat().st_mtime_ns
    assert main(arguments) == 0
    assert (out / "manifest.json").stat().st_mtime_ns == written


def test_damaged_pictures_of_a_folder_are_left_out_and_named(finished, pictures, tmp_path, capsys):
    folder = shutil.copytree(pictures, tmp_path / "some, pictures")
    (folder / "a" / "0.png").write_text("text")
    run = str(finished[0])
    assert main(["encode", run, str(folder / "a"), f"--out={tmp_path / 'out'}"]) == 0
    assert "0.png" in capsys.readouterr().err
    with np.load(tmp_path / "out" / "latents.npz") as arrays:
        assert list(arrays["names"]) == [str(folder / "a" / "1.jpg")]
    assert main(["encode", run, f"--source={folder}", f"--out={tmp_path / 'functaset'}"]) == 0
    assert "0.png" in capsys.readouterr().err
    with (tmp_path / "functaset" / "psnr.csv").open() as file:
        files = [row["file"] for row in csv.DictReader(file)]
    assert files == [str(folder / "a" / "1.jpg"), str(folder / "b" / "0.png")]
    (folder / "a" / "1.jpg").write_text("text")
    assert main(["encode", run, str(folder / "a"), f"--out={tmp_path / 'none'}"]) == 2


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["missing.png"],
        ["{text}"],
        ["--source={empty}"],
        ["--source=nothing", "--data-dir={empty}"],
        ["{text}", "--source={empty}"],
    ],
)
def test_bad_input_has_status_2_and_one_line(finished, tmp_path, capsys, arguments):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.png").write_text("text")
    places = {"text": tmp_path / "text.png", "empty": tmp_path / "empty"}
    words = [word.format(**places) for word in arguments]
    assert main(["encode", str(finished[0]), *words, f"--out={tmp_path / 'out'}"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (tmp_path / "out").exists()
