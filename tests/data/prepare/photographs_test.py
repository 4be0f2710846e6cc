"""Photographs from folders and tars: all good ones in, the damaged named; killed runs go on to the same bytes."""

import errno
import io
import os
import pathlib
import signal
import struct
import subprocess
import sys
import tarfile
import zlib

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from functa.data import image_records, images
from functa.data.prepare import photographs, shards
from functa.runtime import storage
from tests.data.prepare.prepare_data_test import digests
from tools import prepare_data

RAW = {"image": tfds.decode.SkipDecoding()}


def encoded(seed, size=(20, 24), file_format="JPEG", mode="RGB", **options):
    """A photograph of few frequencies, as quick to make as to compress."""
    h, w = size
    rng = np.random.default_rng(seed)
    waves = np.outer(rng.random(h), rng.random(w))[..., None] * rng.integers(40, 256, 3)
    data = io.BytesIO()
    Image.fromarray(waves.astype(np.uint8)).convert(mode).save(data, file_format, **options)
    return data.getvalue()


def deep():
    """A PNG of 16 bits a pixel."""
    data = io.BytesIO()
    Image.fromarray(np.full((20, 24), 40000, np.uint16)).save(data, "PNG")
    return data.getvalue()


# What makes a damaged file of a good one, and the reason that is told.
DAMAGE = [
    (lambda data: b"", "the file is empty"),
    (lambda data: data[:-40], "OSError: image file is truncated"),
    (lambda data: data[:12], "OSError: Truncated File Read"),
    (lambda data: b"<html>not found</html>", "it begins with b'<html>no'"),
    (lambda data: encoded(1, file_format="GIF"), "it begins with b'GIF8"),
    (lambda data: encoded(1, file_format="PNG")[:-40], "truncated"),
    (lambda data: deep(), "more than 8 bits a channel (mode I;16)"),
    (lambda data: encoded(1, size=(1, 1)), "1x1 pixels, --min_side is 4"),
    (lambda data: encoded(1, size=(30, 3)), "30x3 pixels, --min_side is 4"),
    (lambda data: b"\0" * 500, "it begins with b'\\x00"),
]
# What looks strange and is none.
FINE = [
    lambda seed: encoded(seed, mode="CMYK"),
    lambda seed: encoded(seed, mode="L"),
    lambda seed: encoded(seed, file_format="PNG"),
    lambda seed: encoded(seed, file_format="PNG", mode="P"),
    lambda seed: encoded(seed, file_format="PNG", mode="RGBA"),
    lambda seed: encoded(seed, progressive=True),
    lambda seed: encoded(seed, size=(4, 200)),
    lambda seed: encoded(seed) + b"some telephone's notes",
]


def make(per_class, *, damaged, classes=10, seed=0, side=20):
    """{(class, file name): bytes} of `classes` * `per_class` files, and {file name: reason} of those damaged.

    Sides are `side` to twice as many pixels."""
    files, reasons = {}, {}
    for label in range(classes):
        for k in range(per_class):
            number = label * per_class + k
            key = f"n{label:02}", f"n{label:02}_{k}.JPEG"
            size = side + number % (side + 1), 2 * side - number % (side + 1)
            if number % 97 < len(FINE):
                files[key] = FINE[number % 97](seed + number)
            else:
                files[key] = encoded(seed + number, size=size)
    keys = list(files)
    for k in range(damaged):
        key = keys[(k * len(keys)) // damaged + k % 3]
        change, reason = DAMAGE[k % len(DAMAGE)]
        files[key] = change(encoded(seed + k))
        reasons[key[1]] = reason
    return files, reasons


def add(tar, name, data):
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def tar_of(path, files):
    """A tar of {name: bytes}; where path is None its bytes."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for name, content in files.items():
            add(tar, name, content)
    if path is not None:
        path.write_bytes(data.getvalue())
    return data.getvalue()


def write_folder(root, files):
    for (name, file), data in files.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        (root / name / file).write_bytes(data)
    return root


def write_imagenet(root, train, validation):
    """The two original archives and the labels, as --source and --labels."""
    root.mkdir(parents=True, exist_ok=True)
    classes: dict[str, dict[str, bytes]] = {}
    for (name, file), data in train.items():
        classes.setdefault(name, {})[file] = data
    parts = {f"{name}.tar": tar_of(None, files) for name, files in reversed(classes.items())}
    tar_of(root / "ILSVRC2012_img_train.tar", parts)
    # The classes of the flat tar come mixed.
    mixed = sorted(validation, key=lambda key: (key[1].split("_")[1], key[0]))
    flat = {f"ILSVRC2012_val_{k:08}.JPEG": validation[key] for k, key in enumerate(mixed)}
    tar_of(root / "ILSVRC2012_img_val.tar", flat)
    (root / "labels.txt").write_text("".join(f"{name}\n" for name, _ in mixed))
    tars = [str(root / f"ILSVRC2012_img_{split}.tar") for split in ("train", "val")]
    return ["--source", *tars, f"--labels={root / 'labels.txt'}"]


def run(out, *words, name="small"):
    return prepare_data.main([name, *map(str, words), f"--data_dir={out}"])


def read(out, split, name="small"):
    """[(class, bytes)] in the order of the data set, as TFDS reads them."""
    source = tfds.data_source(name, data_dir=out, split=split, decoders=RAW)
    names = tfds.builder_from_directory(out / name / "1.0.0").info.features["label"].names
    return [(names[row["label"]], bytes(row["image"])) for row in source]


def good(files, reasons):
    return sorted((name, data) for (name, file), data in files.items() if file not in reasons)


def assert_listed(out, printed, reasons):
    """Each damaged image is told with its reason, on the screen and in damaged.txt; no other is."""
    lines = (out / "small" / "1.0.0" / "damaged.txt").read_text().splitlines()
    told = {os.path.basename(line.split(": ")[0]): line for line in lines}
    assert told.keys() == reasons.keys()
    for file, reason in reasons.items():
        assert reason in told[file]
        assert told[file].replace(": ", ": left out: ", 1) in printed
    assert f"{len(reasons)} damaged images" in printed


# --- Sources -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def few():
    """Six classes of small files: train with 10 damaged, validation whole."""
    train, reasons = make(12, damaged=10, classes=6)
    validation, _ = make(5, damaged=0, classes=6, seed=1000)
    return train, reasons, validation


def test_imagenets_own_archives(tmp_path, few, capsys):
    train, reasons, validation = few
    words = write_imagenet(tmp_path, train, validation)
    assert run(tmp_path / "out", *words, "--min_side=4") == 1
    out = capsys.readouterr().out
    assert_listed(tmp_path / "out", out, reasons)
    assert "ILSVRC2012_img_train.tar/n00: 12 images" in out
    assert "ILSVRC2012_img_val.tar: 30 images of 6 classes" in out
    assert sorted(read(tmp_path / "out", "train")) == good(train, reasons)
    assert sorted(read(tmp_path / "out", "validation")) == good(validation, {})
    info = tfds.builder_from_directory(tmp_path / "out" / "small" / "1.0.0").info
    assert info.features["image"].shape == (None, None, 3)
    assert info.features["label"].names == [f"n{k:02}" for k in range(6)]


def test_a_folder_and_its_tars_are_one_set(tmp_path, few, capsys):
    """Byte for byte, whichever way the tars are packed; the damaged are called by their places."""
    train, reasons, validation = few
    photos = tmp_path / "photos"
    write_folder(photos / "train", train)
    write_folder(photos / "val", validation)
    with tarfile.open(tmp_path / "all.tar", "w") as tar:
        tar.add(photos, "photos")
    for split in ("train", "val"):
        with tarfile.open(tmp_path / f"{split}.tar", "w") as tar:
            tar.add(photos / split, ".")
    sources = [["photos"], ["all.tar"], ["train.tar", "val.tar"]]
    results = []
    for k, names in enumerate(sources):
        paths = [tmp_path / name for name in names]
        assert run(tmp_path / f"out{k}", "--source", *paths, "--min_side=4") == 1
        found = digests(tmp_path / f"out{k}")
        assert_listed(tmp_path / f"out{k}", capsys.readouterr().out, reasons)
        results.append({name: each for name, each in found.items() if name != "damaged.txt"})
    assert results[0] == results[1] == results[2]


def test_one_tar_of_class_folders(tmp_path, few):
    train, reasons, _ = few
    tar_of(tmp_path / "photos.tar", {f"photos/{'/'.join(key)}": v for key, v in train.items()})
    words = ["--source", tmp_path / "photos.tar", "--test_fraction=0.25", "--min_side=4"]
    assert run(tmp_path / "out", *words) == 1
    parts = {split: read(tmp_path / "out", split) for split in ("train", "test")}
    assert sorted(parts["train"] + parts["test"]) == good(train, reasons)
    assert len(parts["test"]) == pytest.approx(72 / 4, abs=len(reasons))


def test_labels_by_file_name(tmp_path, few):
    train, _, validation = few
    words = write_imagenet(tmp_path, train, validation)
    labels = tmp_path / "labels.txt"
    lines = [f"ILSVRC2012_val_{k:08}.JPEG {n}" for k, n in enumerate(labels.read_text().split())]
    labels.write_text("\n".join(reversed(lines)))
    assert run(tmp_path / "out", *words, "--min_side=4") == 1
    assert sorted(read(tmp_path / "out", "validation")) == good(validation, {})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda lines: lines[:-1], ["has 29 labels for 30 images"]),
        (lambda lines: ["n00 x y", *lines[1:]], ["each line must be CLASS, or each FILE CLASS"]),
        (lambda lines: [f"{k} n00" for k in range(30)], ["no line for 30 images", "00000000.JPEG"]),
        (lambda lines: [str(k + 1) for k in range(30)], ["numbers such as 1", "meta.mat"]),
        (
            lambda lines: [f"ILSVRC2012_val_{k:08}.JPEG 7" for k in range(30)],
            ["validation: class 7: DAMAGED: a class that train does not have"],
        ),
        (lambda lines: ["n77", *lines[1:]], ["validation: class n77: DAMAGED: a class that train"]),
        (None, ["ILSVRC2012_val_00000000.JPEG lies in no class folder; bring --labels=FILE"]),
    ],
)
def test_labels_that_do_not_fit(tmp_path, few, change, words, capsys):
    *source, labels = write_imagenet(tmp_path, few[0], few[2])
    if change is not None:
        path = tmp_path / "labels.txt"
        path.write_text("\n".join(change(path.read_text().split())))
        source.append(labels)
    assert run(tmp_path / "out", *source) == 2
    refused(tmp_path, capsys, *words)


def refused(tmp_path, capsys, *words):
    captured = capsys.readouterr()
    assert "nothing is written" in captured.err
    for word in words:
        assert word in captured.out + captured.err
    assert not (tmp_path / "out").exists()


def test_tars_that_cannot_be_used(tmp_path, few, capsys):
    train, _, _ = few
    path, fraction = tmp_path / "photos.tar", "--test_fraction=0.5"
    tar_of(path, {"/".join(key): data for key, data in train.items()})
    whole = path.read_bytes()
    end = whole.rindex(b"ustar") - 257  # of the last member but one
    for cut in (end, end + 300, end + 600):
        path.write_bytes(whole[:cut])
        assert run(tmp_path / "out", "--source", path, fraction) == 2
        refused(tmp_path, capsys, "photos.tar: DAMAGED: not a whole tar")
    # A header in the middle is damaged: what follows it would be lost.
    broken = whole.index(b"n03/n03_1.JPEG")
    path.write_bytes(whole[:broken] + b"#" + whole[broken + 1 :])
    assert run(tmp_path / "out", "--source", path, fraction) == 2
    refused(tmp_path, capsys, f"breaks off after {broken:,} bytes")
    path.write_bytes(b"no tar")
    assert run(tmp_path / "out", "--source", path, fraction) == 2
    refused(tmp_path, capsys, "photos.tar: DAMAGED: not a whole tar")
    inner = tar_of(None, {"1.JPEG": encoded(0)})
    tar_of(path, {"cat.tar": inner, "dog.tar": b"#" + inner[1:]})
    assert run(tmp_path / "out", "--source", path, fraction) == 2
    refused(tmp_path, capsys, "not a whole tar: photos.tar/dog.tar: ")
    tar_of(path, {"cat/1.JPEG": encoded(0), "pets/dog/1.JPEG": encoded(1)})
    assert run(tmp_path / "out", "--source", path, fraction) == 2
    refused(tmp_path, capsys, "do not lie equally deep")
    tar_of(path, {"a/cat/1.JPEG": encoded(0), "b/cat/2.JPEG": encoded(1)})
    assert run(tmp_path / "out", "--source", path, fraction) == 2
    refused(tmp_path, capsys, "class cat lies in photos.tar/a/cat and in photos.tar/b/cat")
    tar_of(path, {"cat.tar": tar_of(None, {"1.JPEG": encoded(0)}), "dog.tar": tar_of(None, {})})
    assert run(tmp_path / "out", "--source", path, fraction) == 2
    refused(tmp_path, capsys, "photos.tar/dog: DAMAGED: no PNG or JPEG in it")
    with tarfile.open(tmp_path / "photos.tar.gz", "w:gz") as tar:
        add(tar, "cat/1.JPEG", encoded(0))
    assert run(tmp_path / "out", "--source", tmp_path / "photos.tar.gz", fraction) == 2
    refused(tmp_path, capsys, "only the inside of uncompressed tars")


def test_a_class_without_a_whole_image(tmp_path, few, capsys):
    train, _, validation = few
    changed = {key: data[:-30] if key[0] == "n02" else data for key, data in validation.items()}
    write_folder(tmp_path / "photos" / "train", train)
    write_folder(tmp_path / "photos" / "val", changed)
    assert run(tmp_path / "out", "--source", tmp_path / "photos") == 2
    refused(
        tmp_path, capsys, "validation: class n02: DAMAGED: none of its 5 images is whole", "n02_0"
    )
    assert run(tmp_path / "out", "--source", tmp_path / "photos", "--min_side=0") == 2
    refused(tmp_path, capsys, "--min_side must be at least 1, not 0")


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"mode": "L"}, {"mode": "CMYK"}])
def test_what_is_looked_over_can_be_decoded(tmp_path, options):
    """Photographs are checked at an eighth of their size; training decodes them whole."""
    rng = np.random.default_rng(0)
    path, verdicts = tmp_path / "photo.jpg", []
    for k in range(200):
        data = bytearray(encoded(k % 10, size=(70, 90), **options))
        if k % 2:
            data = data[: rng.integers(10, len(data))]
        else:
            for at in rng.integers(0, len(data), 4):
                data[at] ^= 1 << rng.integers(8)
        path.write_bytes(data)
        photo = photographs.Photo("", "", "photo.jpg", str(path), None, len(data))
        sample = photographs.look(photo, min_side=1)
        try:
            image_records.decode_image(bytes(data), image_shape=(64, 64, 3), resize=True)
            verdicts.append((not sample.damage, True))
        except (OSError, SyntaxError, ValueError):
            verdicts.append((not sample.damage, False))
    assert all(one == other for one, other in verdicts)
    assert 40 < sum(whole for whole, _ in verdicts) < 140


def test_names_that_are_not_utf8(tmp_path, capsys):
    """As of archives packed elsewhere: images keep them, of classes they are refused."""
    root = tmp_path / "photos"
    for name in ("cat", "dog"):
        write_folder(root, {(name, f"{k}.jpg"): encoded(k) for k in range(3)})
    for name, data in ((b"caf\xe9.jpg", encoded(7)), (b"\xff.jpg", b"none")):
        with open(os.path.join(os.fsencode(root), b"cat", name), "wb") as file:
            file.write(data)
    words = ["--source", root, "--test_fraction=0.5"]
    assert run(tmp_path / "out", *words) == 1
    assert "cat/\\udcff.jpg: left out: not a PNG or JPEG" in capsys.readouterr().out
    damaged = tmp_path / "out" / "small" / "1.0.0" / "damaged.txt"
    assert damaged.read_bytes().startswith(b"cat/\xff.jpg: not a PNG or JPEG")
    os.rename(os.fsencode(root / "dog"), os.path.join(os.fsencode(root), b"d\xf6g"))
    assert run(tmp_path / "other", *words) == 2
    assert "class d\\udcf6g: DAMAGED: its name is not UTF-8" in capsys.readouterr().out


def test_images_of_a_split_without_classes_are_told(tmp_path, capsys):
    root = tmp_path / "photos"
    for split in ("train", "val"):
        write_folder(root / split, {("cat", f"{split}.jpg"): encoded(1)})
    (root / "test").mkdir()
    (root / "test" / "1.jpg").write_bytes(encoded(2))
    assert run(tmp_path / "out", "--source", root) == 0
    assert "test: no class folders in it; not read" in capsys.readouterr().out


def test_telephones_second_pictures(tmp_path):
    """A JPEG with another behind it, which Pillow calls MPO, is a JPEG."""
    first, second = (Image.open(io.BytesIO(encoded(k))) for k in range(2))
    data = io.BytesIO()
    first.save(data, "MPO", save_all=True, append_images=[second])
    assert Image.open(io.BytesIO(data.getvalue())).format == "MPO"
    for name in ("cat", "dog"):
        write_folder(tmp_path / "photos", {(name, f"{k}.jpg"): data.getvalue() for k in range(2)})
    words = ["--source", tmp_path / "photos", "--test_fraction=0.5"]
    assert run(tmp_path / "out", *words) == 0
    info = tfds.builder_from_directory(tmp_path / "out" / "small" / "1.0.0").info
    assert info.features["image"].encoding_format == "jpeg"


def png_of_16_bits():
    """Of RGB, 5x6 pixels."""

    def chunk(name, data):
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", 6, 5, 16, 2, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + bytes(36) for _ in range(5)))
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels)
    return data + chunk(b"IEND", b"")


def test_16_bits_of_colour(tmp_path, capsys):
    """Pillow would cut them to 8 without a word."""
    data = png_of_16_bits()
    assert Image.open(io.BytesIO(data)).mode == "RGB"
    files = {(name, f"{k}.png"): encoded(k) for name in ("cat", "dog") for k in range(4)}
    write_folder(tmp_path / "photos", files | {("cat", "deep.png"): data})
    assert run(tmp_path / "out", "--source", tmp_path / "photos", "--test_fraction=0.5") == 1
    assert "cat/deep.png: left out: the image has more than 8 bits" in capsys.readouterr().out


def test_files_that_are_none(tmp_path, few, capsys):
    """A link to nowhere is a damaged image, a folder of an image's name is none."""
    write_folder(tmp_path / "photos", few[0])
    (tmp_path / "photos" / "n00" / "link.jpg").symlink_to("nowhere")
    (tmp_path / "photos" / "n00" / "folder.jpg").mkdir()
    words = ["--source", tmp_path / "photos", "--test_fraction=0.25", "--min_side=4"]
    assert run(tmp_path / "out", *words) == 1
    printed = capsys.readouterr().out
    assert_listed(tmp_path / "out", printed, few[1] | {"link.jpg": "a link to nowhere"})
    assert "n00: 13 images; not read: folder.jpg" in printed


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), "gone"])
def test_a_disk_that_is_away_says_nothing_of_images(tmp_path, few, monkeypatch, capsys, error):
    """The run ends, and another leaves out none but the damaged images."""
    monkeypatch.setattr(shards, "_SHARD_BYTES", 4000)
    write_folder(tmp_path / "photos", few[0])
    words = ["--source", tmp_path / "photos", "--test_fraction=0.25", "--min_side=4"]
    read_file = photographs._read

    def away(photo):
        if photo.name.endswith("n03_7.JPEG"):
            if error == "gone":
                pathlib.Path(photo.file).unlink()
            else:
                raise error
        return read_file(photo)

    with monkeypatch.context() as context:
        context.setattr(photographs, "_read", away)
        assert run(tmp_path / "out", *words) == 2
    told = capsys.readouterr().err
    assert "Input/output error" in told or "No such file or directory" in told
    write_folder(tmp_path / "photos", few[0])
    assert run(tmp_path / "out", *words) == 1
    assert_listed(tmp_path / "out", capsys.readouterr().out, few[1])


def test_no_memory_says_nothing_of_images(tmp_path, few, monkeypatch):
    def fail(encoded):
        raise MemoryError

    write_folder(tmp_path / "photos", few[0])
    monkeypatch.setattr(image_records, "open_image", fail)
    with pytest.raises(MemoryError):
        run(tmp_path / "out", "--source", tmp_path / "photos", "--test_fraction=0.25")


# --- Killed runs -------------------------------------------------------------------------------

# Kills itself, as the kernel would, when a function is called for the so-manieth time.
PROGRAM = """
import importlib, itertools, os, signal, sys
from functa.data import image_shards
from tools import prepare_data

module, name, count, shard_bytes, *words = sys.argv[1:]
module, calls = importlib.import_module(module), itertools.count(1)
function = getattr(module, name)

def killing(*positional, **named):
    if next(calls) == int(count):
        os.kill(os.getpid(), signal.SIGKILL)
    return function(*positional, **named)

setattr(module, name, killing)
image_shards._SHARD_BYTES = int(shard_bytes)
sys.exit(prepare_data.main(words))
"""


def assert_killed_runs_go_on(
    tmp_path, env, monkeypatch, capsys, *, words, reasons, shard_bytes, looks
):
    """A run that is killed twice and then is not gives the bytes of one that nobody disturbed; returns its folder."""
    monkeypatch.setattr(shards, "_SHARD_BYTES", shard_bytes)
    assert run(tmp_path / "whole", *words) == 1
    assert_listed(tmp_path / "whole", capsys.readouterr().out, reasons)
    expected = digests(tmp_path / "whole")
    out, held = tmp_path / "killed", [0]
    moments = (
        ("functa.data.prepare.photographs", "look", looks),  # in the middle of a shard
        (
            "functa.runtime.config",
            "write_json",
            1 + 3,
        ),  # of the plan and two parts; a shard is renamed but not described
    )
    for module, name, count in moments:
        moment = [module, name, str(count), str(shard_bytes)]
        command = [sys.executable, "-c", PROGRAM, *moment, "small", *map(str, words)]
        killed = subprocess.run(
            [*command, f"--data_dir={out}"], env=env, stdout=subprocess.DEVNULL, timeout=300
        )
        assert killed.returncode == -signal.SIGKILL
        assert sorted(os.listdir(out / "small")) == ["1.0.0.lock", "1.0.0.unfinished"]
        folder = out / "small" / "1.0.0.unfinished"
        held.append(len(list((folder / "parts").glob("*.json"))))
    assert 0 < held[1] == held[2] - 2
    assert len(list((folder / "set").glob("*[0-9]"))) == held[2] + 1
    assert run(out, *words) == 1
    printed = capsys.readouterr().out
    assert_listed(out, printed, reasons)
    assert printed.count("finished earlier") == held[2] < printed.count(".array_record-")
    assert digests(out) == expected
    assert os.listdir(out / "small") == ["1.0.0"]
    return out


def test_killed_runs_go_on(tmp_path, program_env, monkeypatch, capsys, few):
    train, reasons, validation = few
    words = [*write_imagenet(tmp_path / "source", train, validation), "--min_side=4", "--jobs=2"]
    assert_killed_runs_go_on(
        tmp_path,
        program_env,
        monkeypatch,
        capsys,
        words=words,
        reasons=reasons,
        shard_bytes=4000,
        looks=12 + 60,  # one for each class of each split before anything is written
    )


@pytest.mark.slow
def test_ten_thousand_images_with_twenty_damaged(tmp_path, program_env, monkeypatch, capsys):
    train, reasons = make(900, damaged=20, side=48)
    validation, _ = make(100, damaged=0, seed=20000, side=48)
    assert (len(train) + len(validation), len(reasons)) == (10_000, 20)
    words = [*write_imagenet(tmp_path / "source", train, validation), "--min_side=4", "--jobs=2"]
    out = assert_killed_runs_go_on(
        tmp_path,
        program_env,
        monkeypatch,
        capsys,
        words=words,
        reasons=reasons,
        shard_bytes=200_000,
        looks=5000,
    )
    assert sorted(read(out, "train")) == good(train, reasons)
    assert sorted(read(out, "validation")) == good(validation, {})
    splits = images.open_splits(
        source="tfds",
        name="small",
        data_dir=out,
        image_shape=(16, 16, 3),
        num_classes=10,
        train_split="train",
        test_split="validation",
        validation_examples=500,
        max_examples=0,
        cache="none",
    )
    for split in splits.values():
        split.read(np.arange(split.num_examples))


@pytest.fixture
def unfinished(tmp_path, few, monkeypatch, capsys):
    """A run that found the disk full: (folder of three finished shards, the words that go on with it)."""
    monkeypatch.setattr(shards, "_SHARD_BYTES", 4000)
    write_folder(tmp_path / "photos", few[0])
    words = ["--source", tmp_path / "photos", "--test_fraction=0.25", "--min_side=4"]
    closed = []

    class Full(shards.array_record_module.ArrayRecordWriter):
        def close(self):
            super().close()
            closed.append(1)
            if len(closed) == 4:
                raise RuntimeError("write() failed: No space left on device")

    with monkeypatch.context() as context:
        context.setattr(shards.array_record_module, "ArrayRecordWriter", Full)
        assert run(tmp_path / "out", *words) == 2
    error = capsys.readouterr().err
    folder = tmp_path / "out" / "small" / "1.0.0.unfinished"
    assert "prepare_data: not complete: " in error
    assert "No space left on device" in error
    assert f"{folder} keeps what is finished" in error
    return folder, words


def test_a_full_disk_keeps_what_is_finished(unfinished, tmp_path, capsys):
    folder, words = unfinished
    assert run(tmp_path / "out", *words) == 1
    assert capsys.readouterr().out.count("finished earlier") == 3
    assert not folder.exists()
    assert run(tmp_path / "whole", *words) == 1
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")


def test_a_run_begun_from_something_else_is_refused(unfinished, tmp_path, capsys):
    folder, (_, photos, fraction, _) = unfinished
    before = digests(folder)
    for words in (
        ["--source", photos, "--test_fraction=0.5", "--min_side=4"],
        ["--source", photos, fraction, "--min_side=2"],
    ):
        assert run(tmp_path / "out", *words) == 2
        assert f"{folder} was begun with another source or arguments" in capsys.readouterr().err
    (photos / "n03" / "n03_0.JPEG").write_bytes(encoded(77, size=(40, 40)))
    assert run(tmp_path / "out", "--source", photos, fraction, "--min_side=4") == 2
    assert "was begun with another source" in capsys.readouterr().err
    assert digests(folder) == before


def test_a_finished_shard_is_read_again_before_it_counts(unfinished, tmp_path, capsys):
    folder, words = unfinished
    parts = sorted((folder / "parts").glob("*.json"))
    shard = folder / "set" / parts[0].stem
    data = shard.read_bytes()
    shard.write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])
    parts[1].write_text("{")
    assert run(tmp_path / "out", *words) == 1
    assert capsys.readouterr().out.count("finished earlier") == len(parts) - 2
    assert (folder.parent / "1.0.0" / shard.name).read_bytes() == data


def test_two_runs_at_once(unfinished, tmp_path, capsys):
    folder, words = unfinished
    with storage.locked(folder.parent / "1.0.0.lock"):
        assert run(tmp_path / "out", *words) == 2
    assert f"another program is running in {folder.parent}" in capsys.readouterr().err
    assert folder.exists()


def test_ctrl_c(tmp_path, few, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    write_folder(tmp_path / "photos", few[0])
    monkeypatch.setattr(shards, "write", interrupted)
    assert run(tmp_path / "out", "--source", tmp_path / "photos", "--test_fraction=0.25") == 130
    assert "stopped; the same command goes on" in capsys.readouterr().err
    assert os.listdir(tmp_path / "out" / "small") == []


def test_a_lock_that_its_owner_removes_meanwhile_is_none(tmp_path, monkeypatch):
    path = tmp_path / "lock"
    monkeypatch.setattr(storage.fcntl, "flock", lambda *_: path.unlink())
    with pytest.raises(ValueError, match="try again"), storage.locked(path):
        pass


def test_a_run_killed_in_its_last_line(unfinished, tmp_path, capsys):
    """All is in its place, but for what is to be removed."""
    folder, words = unfinished
    assert run(tmp_path / "out", *words) == 1
    before = digests(tmp_path / "out")
    (folder / "parts").mkdir(parents=True)
    assert run(tmp_path / "out", *words) == 2
    assert "exists and is left as it is" in capsys.readouterr().err
    assert os.listdir(folder.parent) == ["1.0.0"]
    assert digests(tmp_path / "out") == before
