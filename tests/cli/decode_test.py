import numpy as np
import pytest
from PIL import Image

from functa.cli import decode
from functa.cli.main import main
from functa.data.functaset import reader
from tests.cli.conftest import reference_image


def run_decode(path, out, **options):
    """Runs `functa decode`; returns the exit status, also that of argparse."""
    options = {"split": "test", "ids": "200", "out": out} | options
    flags = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    try:
        return main(["decode", str(path), *flags])
    except SystemExit as error:
        return error.code


@pytest.mark.parametrize(
    ("size", "shape"),
    [({}, (8, 8)), ({"scale": 3}, (24, 24)), ({"resolution": "20x6"}, (20, 6))],
)
def test_writes_the_requested_images(stub_run, tmp_path, monkeypatch, size, shape):
    directory, splits = stub_run
    monkeypatch.setattr(decode, "_BATCH_PIXELS", 2 * shape[0] * shape[1])  # batches of two images
    out = tmp_path / "a" / "b"
    ids = (229, 202, 205)
    assert run_decode(directory, out, ids="229,202,205", copy=2, **size) == 0
    names = {id: f"test_{id:06d}_copy2_{shape[0]}x{shape[1]}.png" for id in ids}
    assert {path.name for path in out.iterdir()} == set(names.values())
    for id, name in names.items():
        with Image.open(out / name) as image:
            assert image.mode == "L"
            pixels = np.asarray(image).astype(int)
        expected = reference_image(splits["test"]["latents"][id - 200], shape)
        assert np.abs(pixels - expected).max() <= 1  # values halfway between two bytes


def test_takes_the_directory_of_the_functaset_and_ranges_of_ids(stub_run, tmp_path):
    directory, splits = stub_run
    status = run_decode(directory / "functaset", tmp_path / "out", split="train", ids="42-42,0,3")
    assert status == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {f"train_{id:06d}_8x8.png" for id in (0, 3, 42)}


def test_reads_only_shards_that_may_hold_the_ids(stub_run):
    directory, splits = stub_run
    functaset = reader.open_functaset(directory / "functaset", field_digest=None)
    (directory / "functaset" / "functaset-train.array_record-00000-of-00003").unlink()
    latents = decode.read_latents(functaset, split="train", ids=[42, 21], copy=0)
    np.testing.assert_array_equal(latents, splits["train"]["latents"][[42, 21]])


def test_missing_records_are_named(stub_run, tmp_path, capsys):
    assert run_decode(stub_run[0], tmp_path / "out", ids="229,200-201", copy=2) == 2
    message = capsys.readouterr().err
    for part in ("copy 2", "test", "200, 201", "200 to 229"):
        assert part in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        *(("ids", value) for value in ("1,x", "5-3", "", "0-99999999999")),
        *(("resolution", value) for value in ("100", "0x9")),
        *(("scale", value) for value in ("0", "1.5")),
        ("split", "dev"),
    ],
)
def test_impossible_arguments_are_refused(stub_run, tmp_path, capsys, flag, value):
    assert run_decode(stub_run[0], tmp_path / "out", **{flag: value}) == 2
    assert f"--{flag}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_functaset_of_another_field_is_refused(stub_run, other_field, tmp_path, capsys):
    assert run_decode(stub_run[0], tmp_path / "out") == 2
    message = capsys.readouterr().err
    assert all(digest in message for digest in other_field)
