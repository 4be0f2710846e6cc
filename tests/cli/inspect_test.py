import numpy as np
import pytest
from PIL import Image

from functa.cli.main import main
from functa.data.functaset import reader
from tests.cli.conftest import reference_image
from tests.support import functaset_sets


def test_prints_the_summary_and_writes_a_sheet(stub_run, capsys):
    directory, splits = stub_run
    assert main(["inspect", str(directory), "--images", "9", "--split", "train"]) == 0
    output = capsys.readouterr().out
    manifest = reader.read_manifest(directory / "functaset")
    for part in (
        "2x2x3 = 12",
        "float32",
        manifest.field_digest,
        f"{manifest.splits['test']['psnr']:.2f} dB",
        f"{manifest.mean[1]:.5f}",
        f"{manifest.scalar_std:.5f}",
        "9 of 45 train",
    ):
        assert part in output
    rows = {line.split()[0]: line.split()[1:3] for line in output.splitlines() if line.strip()}
    assert (rows["train"], rows["validation"]) == (["45", "3"], ["5", "1"])
    with Image.open(directory / "functaset_train.png") as image:
        sheet = np.asarray(image).astype(int)
    assert sheet.shape == (3 * 64 + 2 * 2, 3 * 64 + 2 * 2)  # 8 pixels enlarged to 64, gaps of 2
    last = reference_image(splits["train"]["latents"][44], (64, 64))
    assert np.abs(sheet[-64:, -64:] - last).max() <= 1


def test_without_a_run_only_the_summary_is_printed(tmp_path, capsys):
    functaset_sets.write(tmp_path / "functaset")
    assert main(["inspect", str(tmp_path / "functaset")]) == 0
    assert "--field" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["functaset"]


def test_field_and_sheet_may_be_elsewhere(stub_run, tmp_path):
    directory, _ = stub_run
    (directory / "functaset").rename(tmp_path / "moved")
    sheet = tmp_path / "sheet.png"
    flags = ["--field", str(directory), "--sheet", str(sheet)]
    assert main(["inspect", str(tmp_path / "moved"), *flags]) == 0
    with Image.open(sheet) as image:
        assert image.size == (6 * 66 - 2, 5 * 66 - 2)  # 30 records


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (["--split", "dev"], "'dev'"),
        (["--images", "0"], "--images"),
        (["--field", "elsewhere"], "elsewhere"),
    ],
)
def test_impossible_arguments_are_refused(stub_run, capsys, flags, part):
    assert main(["inspect", str(stub_run[0]), *flags]) == 2
    assert part in capsys.readouterr().err


def test_an_incomplete_functaset_is_refused(tmp_path, capsys):
    assert main(["inspect", str(tmp_path)]) == 2
    assert "manifest.json" in capsys.readouterr().err


def test_functaset_of_another_field_is_refused(stub_run, other_field, capsys):
    assert main(["inspect", str(stub_run[0])]) == 2
    message = capsys.readouterr().err
    assert all(digest in message for digest in other_field)
