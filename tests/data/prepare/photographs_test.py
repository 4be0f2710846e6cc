"""`functa prepare` from photographs in folders and tars."""

import errno
import io
import os
import pathlib
import tarfile

import numpy as np
import pytest
from PIL import Image

from functa.data import image_records
from functa.data.prepare import photographs, writer
from functa.runtime.errors import DataError, UserError
from tests.support import image_sources
from tests.support.image_sources import encode, open_source, prepare, tar_bytes, write_folder

FRACTION = "--test-fraction=0.25"


@pytest.fixture(scope="module")
def photos():
    """(train, reasons of its damaged ones, validation without damage): six classes."""
    train, reasons = image_sources.make_photos(12, num_damaged=10)
    return train, reasons, image_sources.make_photos(5, num_damaged=0, seed=1000)[0]


# --- Layouts


def test_archives_of_imagenet(tmp_path, photos, capsys):
    train, reasons, validation = photos
    arguments = image_sources.write_imagenet(tmp_path, train, validation)
    assert prepare(tmp_path / "out", *arguments, "--min-side=4") == 1
    image_sources.assert_reported(tmp_path / "out", capsys.readouterr().out, reasons)
    assert image_sources.stored(tmp_path / "out", "train") == image_sources.intact(train, reasons)
    expected = image_sources.intact(validation, {})
    assert image_sources.stored(tmp_path / "out", "validation") == expected
    features = image_sources.builder(tmp_path / "out").info.features
    assert features["image"].shape == (None, None, 3)
    assert features["label"].names == [f"n{k:02}" for k in range(6)]
    # The same labels by file name, in any order.
    labels = tmp_path / "labels.txt"
    names = labels.read_text().split()
    lines = [f"ILSVRC2012_val_{k:08}.JPEG {name}" for k, name in enumerate(names)]
    labels.write_text("\n".join(reversed(lines)))
    assert prepare(tmp_path / "again", *arguments, "--min-side=4") == 1
    assert image_sources.digests(tmp_path / "again") == image_sources.digests(tmp_path / "out")


def test_a_folder_and_its_tars_give_the_same_bytes(tmp_path, photos, capsys):
    train, reasons, validation = photos
    folder = tmp_path / "photos"
    write_folder(folder / "train", train)
    write_folder(folder / "val", validation)
    with tarfile.open(tmp_path / "all.tar", "w") as tar:
        tar.add(folder, "photos")
    for split in ("train", "val"):
        with tarfile.open(tmp_path / f"{split}.tar", "w") as tar:
            tar.add(folder / split, ".")
    results = []
    for names in (["photos"], ["all.tar"], ["train.tar", "val.tar"]):
        out = tmp_path / f"out{len(results)}"
        assert prepare(out, "--source", *(tmp_path / name for name in names), "--min-side=4") == 1
        image_sources.assert_reported(out, capsys.readouterr().out, reasons)
        results.append(image_sources.digests(out))
        del results[-1]["damaged.txt"]  # it names places
    assert results[0] == results[1] == results[2]


def test_a_source_without_splits_is_divided_within_classes(tmp_path):
    photos, _ = image_sources.make_photos(20, num_damaged=0, classes=3)
    photos = {key: data for key, data in photos.items() if key[0] != "n02" or "_1" in key[1]}
    (tmp_path / "a.tar").write_bytes(
        tar_bytes({f"photos/{'/'.join(key)}": data for key, data in photos.items()})
    )
    write_folder(tmp_path / "folder", photos)
    for source in ("a.tar", "folder"):
        out = tmp_path / f"out-{source}"
        assert prepare(out, "--source", tmp_path / source, "--test-fraction=0.2") == 0
        labels = {s: [k for k, _ in image_sources.read_rows(out, s)] for s in ("train", "test")}
        counts = {split: np.bincount(each, minlength=3).tolist() for split, each in labels.items()}
        assert counts == {"train": [16, 16, 9], "test": [4, 4, 2]}
        together = [*image_sources.stored(out, "train"), *image_sources.stored(out, "test")]
        assert sorted(together) == image_sources.intact(photos, {})
        # Classes are mixed, not one after the other.
        assert all(5 <= labels["train"][k : k + 16].count(0) <= 8 for k in range(0, 25))


def test_images_of_one_size_and_one_channel_are_declared_so(tmp_path):
    images = {("cat", f"{k}.png"): encode(k, (12, 10), "PNG", "L") for k in range(3)}
    for split in ("train", "test"):
        write_folder(tmp_path / "photos" / split, images)
    (tmp_path / "photos" / "train" / "cat" / "notes.txt").write_text("x")
    assert prepare(tmp_path, "--source", tmp_path / "photos") == 0
    image = image_sources.builder(tmp_path).info.features["image"]
    assert (image.shape, image.encoding_format) == ((12, 10, 1), "png")


def test_other_files_are_ignored_and_broken_links_are_damage(tmp_path, capsys):
    photos, _ = image_sources.make_photos(4, num_damaged=0, classes=2)
    root = write_folder(tmp_path / "photos", photos)
    (root / "class_to_idx.json").write_text('{"n00": 0, "n01": 1}')  # not an idx file
    (root / "n00" / "folder.jpg").mkdir()
    (root / "n00" / "._n00_1.JPEG").write_bytes(b"notes of an operating system")
    (root / "n01" / "link.jpg").symlink_to("nowhere")
    assert prepare(tmp_path, "--source", root, FRACTION) == 1
    printed = capsys.readouterr().out
    assert "n00: 4 images; 2 other files" in printed
    image_sources.assert_reported(tmp_path, printed, {"link.jpg": "broken link"})


# --- Photographs


def test_jpeg_with_a_second_picture_is_a_jpeg(tmp_path):
    """Phones write them; Pillow calls the format MPO."""
    first, second = (Image.open(io.BytesIO(encode(k))) for k in range(2))
    data = io.BytesIO()
    first.save(data, "MPO", save_all=True, append_images=[second])
    assert Image.open(io.BytesIO(data.getvalue())).format == "MPO"
    photos = {(name, f"{k}.jpg"): data.getvalue() for name in ("cat", "dog") for k in range(2)}
    write_folder(tmp_path / "photos", photos)
    assert prepare(tmp_path, "--source", tmp_path / "photos", "--test-fraction=0.5") == 0
    assert image_sources.builder(tmp_path).info.features["image"].encoding_format == "jpeg"


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"mode": "L"}, {"mode": "CMYK"}])
def test_the_check_and_training_agree_on_damage(tmp_path, options):
    """The check decodes a JPEG at an eighth of its size; training decodes all of it."""
    random = np.random.default_rng(0)
    path, intact = tmp_path / "photo.jpg", []
    for k in range(200):
        data = bytearray(encode(k % 10, size=(70, 90), **options))
        if k % 2:
            data = data[: random.integers(10, len(data))]
        else:
            for position in random.integers(0, len(data), 4):
                data[position] ^= 1 << random.integers(8)
        path.write_bytes(data)
        photo = photographs.Photo("", "", "photo.jpg", str(path), None, len(data))
        intact.append(not photographs.read_photo(photo, min_side=1).damage)
        try:
            image_records.decode_image(bytes(data), channels=3)
            assert intact[-1]
        except (OSError, SyntaxError, ValueError):
            assert not intact[-1]
    assert 40 < sum(intact) < 140


def test_names_that_are_not_utf8(tmp_path, capsys):
    """Images keep such names; classes must be renamed."""
    root, photos = tmp_path / "photos", {}
    for name in ("cat", "dog"):
        photos |= {(name, f"{k}.jpg"): encode(k) for k in range(3)}
    write_folder(root, photos)
    for name, data in ((b"caf\xe9.jpg", encode(7)), (b"\xff.jpg", b"damaged")):
        pathlib.Path(os.fsdecode(os.path.join(os.fsencode(root / "cat"), name))).write_bytes(data)
    assert prepare(tmp_path / "out", "--source", root, "--test-fraction=0.5") == 1
    assert "cat/\\udcff.jpg: left out" in capsys.readouterr().out
    damaged = tmp_path / "out" / "small" / "1.0.0" / "damaged.txt"
    assert damaged.read_bytes().startswith(b"cat/\xff.jpg: ")
    os.rename(os.fsencode(root / "dog"), os.path.join(os.fsencode(root), b"d\xf6g"))
    with pytest.raises(DataError, match=r"class d\\udcf6g.*UTF-8"):
        open_source(root, test_fraction=0.5)


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), None])
def test_a_missing_disk_is_not_damage(tmp_path, photos, monkeypatch, capsys, error):
    monkeypatch.setattr(writer, "_SHARD_BYTES", 4000)
    root = write_folder(tmp_path / "photos", photos[0])
    arguments = ["--source", root, FRACTION, "--min-side=4"]
    read = photographs._read

    def fail(photo):
        if photo.name.endswith("n03_7.JPEG"):
            if error is not None:
                raise error
            pathlib.Path(photo.file).unlink()
        return read(photo)

    with monkeypatch.context() as context:
        context.setattr(photographs, "_read", fail)
        assert prepare(tmp_path / "out", *arguments) == 2
    write_folder(root, photos[0])
    capsys.readouterr()
    assert prepare(tmp_path / "out", *arguments) == 1
    image_sources.assert_reported(tmp_path / "out", capsys.readouterr().out, photos[1])


def test_lack_of_memory_is_not_damage(tmp_path, photos, monkeypatch):
    def fail(data):
        raise MemoryError

    monkeypatch.setattr(image_records, "open_image", fail)
    root = write_folder(tmp_path / "photos", photos[0])
    with pytest.raises(MemoryError):
        open_source(root, test_fraction=0.25)


# --- Unusable sources


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: lines[:-1], "29 labels for 30 images"),
        (lambda lines: ["n00 x y", *lines[1:]], "FILE CLASS"),
        (lambda lines: [f"{k} n00" for k in range(30)], "no line for 30 images"),
        (lambda lines: [str(k + 1) for k in range(30)], "meta.mat"),
        (lambda lines: [f"ILSVRC2012_val_{k:08}.JPEG 7" for k in range(30)], "class 7: train"),
        (lambda lines: ["n77", *lines[1:]], "class n77: train"),
        (None, "00000000.JPEG is in no class folder.*--labels"),
    ],
)
def test_unusable_labels(tmp_path, photos, change, message):
    _, *tars, _ = image_sources.write_imagenet(tmp_path, photos[0], photos[2])
    path = tmp_path / "labels.txt"
    if change is not None:
        path.write_text("\n".join(change(path.read_text().split())))
    with pytest.raises(UserError, match=message):
        open_source(*tars, labels=None if change is None else str(path))


def test_damaged_tars(tmp_path, photos):
    path = tmp_path / "photos.tar"
    whole = tar_bytes({"/".join(key): data for key, data in photos[0].items()})
    last = whole.rindex(b"ustar") - 257  # header of the last member
    inner = tar_bytes({"1.JPEG": encode(0)})
    middle = whole.index(b"n03/n03_1.JPEG")  # all that follows a damaged header would be lost
    end = inner.rstrip(b"\0")  # the photograph, without the blocks that end the tar
    padded = end + bytes(-len(end) % 512)
    for content, problem in (
        (b"no tar", "photos.tar: not a complete tar"),
        (whole[:last], "photos.tar is truncated|not a complete tar"),
        (whole[: last + 300], "not a complete tar"),
        (whole[: last + 600], "not a complete tar"),
        (whole[:middle] + b"#" + whole[middle + 1 :], f"damaged at byte {middle:,}"),
        (tar_bytes({"cat.tar": inner, "dog.tar": b"#" + inner[1:]}), "photos.tar/dog.tar"),
        # Without its end, the inner tar would take the photographs of the next one.
        (tar_bytes({"cat.tar": padded, "dog.tar": inner}), "photos.tar/cat.tar is truncated"),
        (tar_bytes({"cat.tar": inner, "dog.tar": tar_bytes({})}), "photos.tar/dog: no PNG"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=problem):
            open_source(path, test_fraction=0.5)


def test_unclear_tars(tmp_path):
    path = tmp_path / "photos.tar"
    for files, message in (
        ({"cat/1.JPEG": encode(0), "pets/dog/1.JPEG": encode(1)}, "equally deep"),
        ({"a/cat/1.JPEG": encode(0), "b/cat/2.JPEG": encode(1)}, "class cat is both"),
    ):
        path.write_bytes(tar_bytes(files))
        with pytest.raises(UserError, match=message):
            open_source(path, test_fraction=0.5)
    with tarfile.open(tmp_path / "photos.tar.gz", "w:gz") as tar:
        tar.add(write_folder(tmp_path / "cat", {("cat", "1.JPEG"): encode(0)}), "photos")
    with pytest.raises(UserError, match="compressed"):
        open_source(tmp_path / "photos.tar.gz", test_fraction=0.5)


def test_unusable_folders(tmp_path, capsys):
    root = tmp_path / "photos"
    with pytest.raises(UserError, match="CLASS/IMAGE"):
        open_source(write_folder(tmp_path, {("loose", "1.jpg"): encode(1)}) / "loose")
    for split in ("train", "val"):
        write_folder(root / split, {("cat", "1.jpg"): encode(1), ("cat", "2.jpg"): encode(2)})
    with pytest.raises(UserError, match="leave out --test-fraction"):
        open_source(root, test_fraction=0.5)
    with pytest.raises(UserError, match="set --test-fraction"):
        open_source(root / "train")
    with pytest.raises(UserError, match="empty split"):
        open_source(root / "train", test_fraction=0.01)
    (root / "train" / "empty").mkdir()
    write_folder(root / "val", {("dog", "1.jpg"): encode(1), ("cat", "2.jpg"): b"damaged"})
    (root / "val" / "cat" / "1.jpg").write_bytes(b"")
    with pytest.raises(DataError) as error:
        open_source(root)
    empty, cat, dog = error.value.problems
    assert empty.startswith("train/empty: ")
    assert cat.startswith("validation: class cat: none of its 2 images is intact; val/cat/1.jpg")
    assert dog.startswith("validation: class dog: train does not have")
