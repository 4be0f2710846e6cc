"""Picture files: found in folders, read at any size and of any kind."""

import numpy as np
import pytest
from PIL import Image

from functa.data.picture_files import PictureSource, find_classes, find_pictures, read_picture
from functa.runtime.errors import UserError

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)


def save(path, pixels=PIXELS, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)
    return path


@pytest.mark.parametrize("suffix", ["png", "webp", "bmp", "tiff"])
def test_lossless_files_are_read_as_stored(tmp_path, suffix):
    path = save(tmp_path / f"a.{suffix}", **({"lossless": True} if suffix == "webp" else {}))
    image = read_picture(path, image_shape=(12, 16, 3), resize="crop")
    np.testing.assert_array_equal(image, PIXELS)


def test_crop_takes_the_center_and_stretch_the_whole(tmp_path):
    bars = np.zeros((12, 16, 3), np.uint8)
    bars[:, :2] = bars[:, 14:] = 255  # outside the centered square
    path = save(tmp_path / "a.png", bars)
    crop, stretch = (
        read_picture(path, image_shape=(6, 6, 3), resize=r) for r in ("crop", "stretch")
    )
    assert crop.shape == stretch.shape == (6, 6, 3)
    assert crop[:, 1:5].max() == 0
    assert stretch[:, [0, 5]].min() > 100


def test_exif_orientation_alpha_and_gray(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    turned = read_picture(
        save(tmp_path / "turned.png", exif=exif), image_shape=(16, 12, 3), resize="crop"
    )
    np.testing.assert_array_equal(turned, np.rot90(PIXELS, -1))
    alpha = np.dstack([PIXELS, np.zeros(PIXELS.shape[:2], np.uint8)])
    clear = read_picture(
        save(tmp_path / "clear.png", alpha), image_shape=(12, 16, 3), resize="crop"
    )
    assert (clear == 255).all()
    gray = read_picture(save(tmp_path / "b.png"), image_shape=(12, 16, 1), resize="crop")
    np.testing.assert_array_equal(gray[..., 0], Image.fromarray(PIXELS).convert("L"))


def test_unreadable_pictures_are_named(tmp_path):
    (tmp_path / "text.png").write_text("not a picture")
    deep = save(tmp_path / "deep.png", Image.fromarray(np.zeros((4, 4), np.uint16)))
    for path in (tmp_path / "text.png", deep):
        with pytest.raises(UserError, match=path.name):
            read_picture(path, image_shape=(4, 4, 3), resize="crop")


def test_folders_give_classes_in_order_of_their_names(tmp_path):
    for name in ("dog/2.png", "cat/1.png", "dog/1.JPG", "cat/.hidden.png", "empty/notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("") if path.suffix == ".txt" else save(path)
    files, labels, names = find_classes(str(tmp_path))
    assert [f"{file.parent.name}/{file.name}" for file in files] == [
        "cat/1.png",
        "dog/1.JPG",
        "dog/2.png",
    ]
    assert labels.tolist() == [0, 1, 1]
    assert names == ["cat", "dog"]
    files, labels, names = find_classes(str(tmp_path / "dog"))
    assert (len(files), labels.tolist(), names) == (2, [-1, -1], [])
    assert find_pictures([str(tmp_path / "dog"), str(tmp_path / "cat/1.png")]) == [
        *files,
        tmp_path / "cat/1.png",
    ]


def test_folders_that_cannot_be_used_are_named(tmp_path):
    (tmp_path / "empty").mkdir()
    save(tmp_path / "mixed" / "a.png")
    save(tmp_path / "mixed" / "cat" / "a.png")
    for name in ("empty", "mixed", "missing"):
        with pytest.raises(UserError, match=name):
            find_classes(str(tmp_path / name))
    for name in ("empty", "missing"):
        with pytest.raises(UserError, match=name):
            find_pictures([str(tmp_path / name)])


def test_source_reads_rows_in_any_order(tmp_path):
    files = [save(tmp_path / f"{k}.png", PIXELS + np.uint8(k)) for k in range(3)]
    source = PictureSource(
        files, np.array([5, 6, 7], np.int32), image_shape=(12, 16, 3), resize="crop"
    )
    batch = source.read(np.array([2, 0]))
    np.testing.assert_array_equal(batch["image"], np.stack([PIXELS + np.uint8(2), PIXELS]))
    assert (batch["label"].tolist(), batch["id"].tolist()) == ([7, 5], [2, 0])
    assert source.read_originals(np.array([1]))["image"][0].shape == PIXELS.shape
    with pytest.raises(IndexError):
        source.read(np.array([3]))
