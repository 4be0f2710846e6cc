"""tools/inspect_functaset.py and decode.py: what they print, write and return."""

import importlib.util
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from functa.data.functaset import reader
from functa.pipeline import load as trained
from functa.training import checkpoint
from tests.support import functaset_sets

ROOT = pathlib.Path(__file__).resolve().parents[2]
PARAMS = {"field": {"weight": np.float32([0.1, -0.2, 0.3])}, "inner_lrs": np.float32([1, 2, 3])}


def load(name):
    spec = importlib.util.spec_from_file_location(f"tools_{name}", ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


decode = load("decode")
inspect_functaset = load("inspect_functaset")


class InventedField:
    """Every cell has one colour: a linear map of its latents."""

    image_shape = (8, 8, 1)

    def __call__(self, params, latents, shape=None):
        h, w = shape or self.image_shape[:2]
        grey = (0.5 + latents @ params["weight"])[..., None]
        return jnp.repeat(jnp.repeat(grey, h // 2, axis=1), w // 2, axis=2)


def expected_image(latents, shape):
    """The same by a slow loop, as bytes."""
    image = np.empty(shape, np.uint8)
    for row in range(shape[0]):
        for column in range(shape[1]):
            cell = latents[row * 2 // shape[0], column * 2 // shape[1]].astype(np.float64)
            value = 0.5 + sum(a * b for a, b in zip(cell, PARAMS["field"]["weight"], strict=True))
            image[row, column] = round(min(max(float(value), 0), 1) * 255)
    return image


@pytest.fixture
def run(tmp_path, monkeypatch):
    """(directory of a run with an invented field, records by split)."""

    def load_field(workdir):
        if pathlib.Path(workdir) != tmp_path / "run":
            raise ValueError(f"{workdir} has no field")
        return InventedField(), PARAMS

    monkeypatch.setattr(trained, "load_field", load_field)
    directory = tmp_path / "run"
    splits = functaset_sets.write(
        directory / "functaset", dtype="float32", field_digest=checkpoint.digest(PARAMS)
    )
    (directory / "config.json").write_text("{}")
    return directory, splits


def refusal(main, arguments, capsys):
    """What a tool says when it ends with status 2."""
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    assert caught.value.code == 2
    return capsys.readouterr().err


# --- decode


@pytest.mark.parametrize(
    ("size", "shape"),
    [((), (8, 8)), (("--scale", "3"), (24, 24)), (("--resolution", "20x6"), (20, 6))],
)
def test_decode_writes_the_images_asked_for(run, tmp_path, capsys, size, shape):
    directory, splits = run
    out = tmp_path / "a" / "b"
    arguments = [directory, "--split", "test", "--ids", "229,200-201", "--copy", "2", *size]
    ids = [id for id in (229, 200, 201) if splits["test"]["copy"][id - 200] == 2]
    assert ids == [229]  # the invented records have one copy each, 0 1 2 0 1 2 ...
    message = refusal(decode.main, [*arguments, "--out", out], capsys)
    assert "2 of 3 ids have no copy 2 in the split test" in message
    assert "200, 201; its ids lie in 200 to 229" in message
    assert not out.exists()
    arguments[4] = "229,202,205"
    assert decode.main([str(part) for part in [*arguments, "--out", out]]) == 0
    assert "3 images: " in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == [
        f"test_{id:06d}_copy2_{shape[0]}x{shape[1]}.png" for id in (202, 205, 229)
    ]
    for id in (229, 202, 205):
        with Image.open(out / f"test_{id:06d}_copy2_{shape[0]}x{shape[1]}.png") as image:
            assert image.mode == "L"
            pixels = np.asarray(image).astype(int)
        expected = expected_image(splits["test"]["latents"][id - 200], shape).astype(int)
        assert np.abs(pixels - expected).max() <= 1  # a value in the middle of two bytes


def test_decode_takes_the_image_itself_and_any_number_at_once(run, tmp_path, monkeypatch):
    directory, splits = run
    monkeypatch.setattr(decode, "_PIXELS", 8 * 8 * 2)  # two images a batch
    ids = range(0, 45, 3)
    arguments = ["--split", "train", "--ids", ",".join(map(str, ids)), "--out", str(tmp_path / "o")]
    assert decode.main([str(directory / "functaset"), *arguments]) == 0
    assert len(list((tmp_path / "o").iterdir())) == 15
    with Image.open(tmp_path / "o" / "train_000042_8x8.png") as image:
        pixels = np.asarray(image).astype(int)
    expected = expected_image(splits["train"]["latents"][42], (8, 8)).astype(int)
    assert np.abs(pixels - expected).max() <= 1


def test_decode_reads_only_shards_that_may_hold_the_ids(run, monkeypatch):
    directory, splits = run
    opened = reader.open_functaset(directory / "functaset", field_digest=None)
    (directory / "functaset" / "functaset-train.array_record-00000-of-00003").unlink()
    found = decode.find(opened, split="train", ids=[42, 21], copy=0)
    assert list(found) == [21, 42]
    np.testing.assert_array_equal(found[42], splits["train"]["latents"][42])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--ids": "1,x"}, "'x' in '1,x': ids look like 0,5,10-19"),
        ({"--ids": "5-3"}, "ids look like"),
        ({"--ids": ""}, "ids look like"),
        ({"--ids": "0-99999999999"}, "more than 1000000 ids"),
        ({"--resolution": "100"}, "a resolution looks like HxW"),
        ({"--resolution": "0x9"}, "a resolution looks like HxW"),
        ({"--scale": "0"}, "a scale is a whole number from 1"),
        ({"--scale": "1.5"}, "a scale is a whole number from 1"),
        ({"--scale": "2", "--resolution": "8x8"}, "not allowed with"),
        ({"--split": "dev"}, "invalid choice"),
        ({"--ids": "7000"}, "1 of 1 ids have no copy 0"),
    ],
)
def test_decode_refuses_bad_arguments(run, tmp_path, capsys, changes, message):
    directory, _ = run
    options = {"--split": "test", "--ids": "200", "--out": tmp_path / "o"} | changes
    arguments = [directory, *(part for option in options.items() for part in option)]
    assert message in refusal(decode.main, arguments, capsys)
    assert not (tmp_path / "o").exists()


def test_decode_refuses_a_functaset_of_another_field(run, tmp_path, capsys, monkeypatch):
    directory, _ = run
    other = {"field": PARAMS["field"]}
    monkeypatch.setattr(trained, "load_field", lambda workdir: (InventedField(), other))
    options = ["--split", "test", "--ids", "200", "--out", tmp_path / "o"]
    message = refusal(decode.main, [directory, *options], capsys)
    assert checkpoint.digest(other) in message
    assert checkpoint.digest(PARAMS) in message


# --- inspect_functaset


def test_inspect_prints_what_is_there_and_writes_a_sheet(run, capsys):
    directory, splits = run
    assert inspect_functaset.main([str(directory), "--images", "9", "--split", "train"]) == 0
    output = capsys.readouterr().out
    opened = reader.open_functaset(directory / "functaset", field_digest=None)
    manifest = opened.manifest
    for words in (
        "2x2x3 = 12 numbers, float32",
        checkpoint.digest(PARAMS),
        f"{manifest.splits['test']['psnr']:.2f} dB",
        f"{manifest.mean[1]:.5f}",
        f"{manifest.scalar_std:.5f}",
        "9 of 45 train records, decoded:",
    ):
        assert words in output
    rows = {line.split()[0]: line.split()[1:3] for line in output.splitlines() if line.strip()}
    assert rows["train"] == ["45", "3"]
    assert rows["validation"] == ["5", "1"]
    with Image.open(directory / "functaset_train.png") as image:
        sheet = np.asarray(image).astype(int)
    assert sheet.shape == (3 * 64 + 2 * 2, 3 * 64 + 2 * 2)  # 8 pixels shown as 64, 2 between
    last = expected_image(splits["train"]["latents"][44], (64, 64)).astype(int)
    assert np.abs(sheet[-64:, -64:] - last).max() <= 1


def test_inspect_without_a_field_prints_the_table_only(tmp_path, capsys):
    functaset_sets.write(tmp_path / "functaset")
    assert inspect_functaset.main([str(tmp_path / "functaset")]) == 0
    assert "no sheet of images" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["functaset"]


def test_inspect_takes_the_field_and_the_file_from_its_arguments(run, tmp_path):
    directory, _ = run
    (directory / "functaset").rename(tmp_path / "moved")
    arguments = ["--field", str(directory), "--sheet", str(tmp_path / "sheet.png")]
    assert inspect_functaset.main([str(tmp_path / "moved"), *arguments]) == 0
    with Image.open(tmp_path / "sheet.png") as image:
        assert image.size == (6 * 66 - 2, 5 * 66 - 2)  # 30 records


def test_inspect_refuses_bad_arguments(run, tmp_path, capsys, monkeypatch):
    directory, _ = run
    assert "no complete functaset" in refusal(inspect_functaset.main, [tmp_path], capsys)
    message = refusal(inspect_functaset.main, [directory, "--split", "dev"], capsys)
    assert "no split 'dev'" in message
    message = refusal(inspect_functaset.main, [directory, "--images", "0"], capsys)
    assert "--images must be at least 1, not 0" in message
    message = refusal(inspect_functaset.main, [directory, "--field", "elsewhere"], capsys)
    assert "elsewhere has no field" in message
    monkeypatch.setattr(trained, "load_field", lambda workdir: (InventedField(), {"field": 1}))
    assert "encoded with the field" in refusal(inspect_functaset.main, [directory], capsys)
