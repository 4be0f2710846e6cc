"""Crops of pictures: positions, and pictures that cannot be used."""

import numpy as np
import pytest
from PIL import Image

from functa.data import crops
from tests.support.image_sources import png_of_16_bits


def save(path, array):
    Image.fromarray(array).save(path)


def test_crops_are_adjacent_and_centered(tmp_path):
    random = np.random.default_rng(0)
    first, second = random.integers(0, 256, (9, 13, 3), np.uint8), np.full((8, 8, 3), 9, np.uint8)
    save(tmp_path / "a.png", first)
    save(tmp_path / "b.PNG", second)
    (tmp_path / "notes.txt").write_text("no picture")
    four, eight = crops.read_crops(tmp_path, shapes=[(4, 4), (8, 8)], channels=3, count=2)
    np.testing.assert_array_equal(four[0], first[0:4, 0:4])
    np.testing.assert_array_equal(four[1], second[4:, 4:])
    np.testing.assert_array_equal(eight[0], first[0:8, 2:10])
    (gray,) = crops.read_crops(tmp_path, shapes=[(4, 4)], channels=1, count=10)
    assert gray.shape == (10, 4, 4, 1)
    expected = np.asarray(Image.fromarray(first).convert("L"))
    np.testing.assert_array_equal(gray[4, ..., 0], expected[4:8, 4:8])


def test_unusable_pictures_are_all_reported(tmp_path):
    folder = tmp_path / "pictures"

    def problems(**changed):
        settings = {"shapes": [(4, 4), (8, 8)], "channels": 3, "count": 1} | changed
        with pytest.raises(ValueError, match=r".") as caught:
            crops.read_crops(folder, **settings)
        return str(caught.value).splitlines()

    assert str(folder) in problems()[0]
    folder.mkdir()
    assert str(folder) in problems()[0]
    save(folder / "small.png", np.zeros((5, 9), np.uint8))
    (folder / "broken.jpg").write_bytes(b"no image")
    save(folder / "deep.png", np.zeros((9, 9), np.uint16))
    (folder / "deep_color.png").write_bytes(png_of_16_bits())
    lines = problems()
    names = ("broken.jpg", "deep.png", "deep_color.png", "small.png")
    assert [name in line for name, line in zip(names, lines, strict=True)] == [True] * 4
    assert "8 bits" in lines[1]
    assert "8 bits" in lines[2]
    assert "5x9" in lines[3]
    for name in names[:3]:
        (folder / name).unlink()
    (line,) = problems(shapes=[(4, 4)], count=3)
    assert "2 crops of 4x4" in line
    save(folder / "cut.png", np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8))
    content = (folder / "cut.png").read_bytes()
    (folder / "cut.png").write_bytes(content[: len(content) // 2])
    assert "cut.png" in problems(shapes=[(4, 4)])[0]
