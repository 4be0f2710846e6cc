"""Image sources in the published formats, and the `functa prepare` command for tests."""

import gzip
import hashlib
import io
import pathlib
import struct
import tarfile
import zlib

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from functa.cli import main as cli
from functa.data.prepare import source_formats
from functa.data.prepare.sources import Report

NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def prepare(out, *arguments, name="small"):
    """Exit status of `functa prepare` into the folder `out`."""
    return cli.main(["prepare", name, *map(str, arguments), f"--data-dir={out}"])


def open_source(*paths, **changes):
    arguments = {"test_fraction": None, "labels": None, "min_side": None} | changes
    return source_formats.open_source(paths, Report(lambda line: None), **arguments)


def builder(out, name="small"):
    return tfds.builder_from_directory(out / name / "1.0.0")


def read_rows(out, split, name="small"):
    """[(label, bytes of the file)] of a split, as TFDS reads them."""
    decoders = {"image": tfds.decode.SkipDecoding()}
    source = builder(out, name).as_data_source(split, decoders=decoders)
    return [(int(row["label"]), bytes(row["image"])) for row in source]


def digests(folder):
    """{file name: digest} of all files below a folder."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# --- Arrays


def arrays(train=30, test=12, shape=(32, 32, 3), seed=0):
    random = np.random.default_rng(seed)
    return {
        "x_train": random.integers(0, 256, (train, *shape), dtype=np.uint8),
        "y_train": (np.arange(train) * 7 % 10).astype(np.uint8),
        "x_test": random.integers(0, 256, (test, *shape), dtype=np.uint8),
        "y_test": (np.arange(test) % 10).astype(np.uint8),
    }


def assert_holds(out, data, name="small"):
    """The data set `out` holds the arrays."""
    for split in ("train", "test"):
        rows = list(builder(out, name).as_data_source(split))
        expected = data[f"x_{split}"]
        pixels = np.stack([row["image"] for row in rows])
        np.testing.assert_array_equal(pixels, expected.reshape(*expected.shape[:3], -1))
        assert [int(row["label"]) for row in rows] == data[f"y_{split}"].tolist()


def idx_bytes(array):
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.tobytes()


def write_idx(folder, data, *, packed):
    folder.mkdir()
    for key, name in (
        ("x_train", "train-images-idx3-ubyte"),
        ("y_train", "train-labels-idx1-ubyte"),
        ("x_test", "t10k-images-idx3-ubyte"),
        ("y_test", "t10k-labels-idx1-ubyte"),
    ):
        content = idx_bytes(data[key])
        (folder / (name + ".gz" * packed)).write_bytes(
            gzip.compress(content, 1) if packed else content
        )
    return folder


def python_2_pickle(value):
    """Protocol 2 as written by Python 2 and its NumPy, in which CIFAR-10 is published."""

    def text(data):
        return b"T" + struct.pack("<i", len(data)) + data

    def number(k):
        return b"J" + struct.pack("<i", k)

    def dump(value):
        if isinstance(value, dict):
            return b"}(" + b"".join(dump(k) + dump(v) for k, v in value.items()) + b"u"
        if isinstance(value, list):
            return b"](" + b"".join(map(dump, value)) + b"e"
        if isinstance(value, np.ndarray):
            array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n"
            array += number(0) + b"\x85" + text(b"b") + b"\x87R"
            dtype = b"cnumpy\ndtype\n" + text(b"u1") + number(0) + number(1) + b"\x87R("
            dtype += number(3) + text(b"|") + b"NNN" + number(-1) + number(-1) + number(0) + b"tb"
            shape = number(value.shape[0]) + number(value.shape[1]) + b"\x86"
            state = number(1) + shape + dtype + b"\x89" + text(value.tobytes())
            return array + b"(" + state + b"tb"
        return number(value) if isinstance(value, int) else text(value)

    return b"\x80\x02" + dump(value) + b"."


def write_cifar(folder, data, *, binary):
    """Writes the six batches and the class names."""
    folder.mkdir(parents=True)
    train = np.array_split(np.arange(len(data["x_train"])), 5)
    batches = {f"data_batch_{k + 1}": ("train", rows) for k, rows in enumerate(train)}
    batches["test_batch"] = ("test", np.arange(len(data["x_test"])))
    for name, (split, rows) in batches.items():
        pixels = data[f"x_{split}"][rows].transpose(0, 3, 1, 2).reshape(-1, 3072)
        labels = data[f"y_{split}"][rows]
        if binary:
            content = np.concatenate([labels[:, None], pixels], axis=1).tobytes()
        else:
            content = python_2_pickle({b"labels": labels.tolist(), b"data": pixels})
        (folder / (name + ".bin" * binary)).write_bytes(content)
    if binary:
        (folder / "batches.meta.txt").write_text("\n".join(NAMES) + "\n\n")
    else:
        meta = {b"num_cases_per_batch": 6, b"label_names": [name.encode() for name in NAMES]}
        (folder / "batches.meta").write_bytes(python_2_pickle(meta))
    return folder


# --- Photographs


def encode(seed, size=(20, 24), file_format="JPEG", mode="RGB", **options):
    """Bytes of a smooth photograph."""
    random = np.random.default_rng(seed)
    waves = np.outer(random.random(size[0]), random.random(size[1]))[..., None]
    data = io.BytesIO()
    pixels = (waves * random.integers(40, 256, 3)).astype(np.uint8)
    Image.fromarray(pixels).convert(mode).save(data, file_format, **options)
    return data.getvalue()


def gray_png_of_16_bits():
    data = io.BytesIO()
    Image.fromarray(np.full((20, 24), 40000, np.uint16)).save(data, "PNG")
    return data.getvalue()


def png_of_16_bits():
    """RGB PNG of 5x6 pixels and 16 bits per channel, which Pillow would reduce to 8 bits."""

    def chunk(name, data):
        checksum = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + checksum

    header = struct.pack(">IIBBBBB", 6, 5, 16, 2, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + bytes(36) for _ in range(5)))
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels)
    return data + chunk(b"IEND", b"")


# Damage of a file, and words of the reason that is reported.
DAMAGE = [
    (lambda data: b"", "empty"),
    (lambda data: data[:-40], "OSError: image file is truncated"),
    (lambda data: data[:12], "OSError: Truncated File Read"),
    (lambda data: b"<html>not found</html>", "b'<html>no'"),
    (lambda data: encode(1, file_format="GIF"), "b'GIF8"),
    (lambda data: encode(1, file_format="PNG")[:-40], "truncated"),
    (lambda data: gray_png_of_16_bits(), "more than 8 bits"),
    (lambda data: png_of_16_bits(), "more than 8 bits"),
    (lambda data: encode(1, size=(1, 1)), "--min-side"),
    (lambda data: encode(1, size=(30, 3)), "--min-side"),
]
INTACT = [
    lambda seed: encode(seed, mode="CMYK"),
    lambda seed: encode(seed, mode="L"),
    lambda seed: encode(seed, file_format="PNG"),
    lambda seed: encode(seed, file_format="PNG", mode="P"),
    lambda seed: encode(seed, file_format="PNG", mode="RGBA"),
    lambda seed: encode(seed, progressive=True),
    lambda seed: encode(seed, size=(4, 200)),
    lambda seed: encode(seed) + b"bytes behind the image",
]


def make_photos(per_class, *, num_damaged, classes=6, seed=0, side=20):
    """{(class, file name): bytes} and {file name: reason} of the damaged ones."""
    photos, reasons = {}, {}
    for label in range(classes):
        for k in range(per_class):
            number = label * per_class + k
            size = side + number % (side + 1), 2 * side - number % (side + 1)
            unusual = INTACT[number % 97] if number % 97 < len(INTACT) else None
            data = unusual(seed + number) if unusual else encode(seed + number, size=size)
            photos[f"n{label:02}", f"n{label:02}_{k}.JPEG"] = data
    keys = list(photos)
    for k in range(num_damaged):
        key = keys[(k * len(keys)) // num_damaged + k % 3]
        damage, reason = DAMAGE[k % len(DAMAGE)]
        photos[key] = damage(encode(seed + k))
        reasons[key[1]] = reason
    return photos, reasons


def intact(photos, reasons):
    """[(class, bytes)] of the photographs that are not damaged, sorted."""
    return sorted((name, data) for (name, file), data in photos.items() if file not in reasons)


def stored(out, split):
    """[(class, bytes)] of a split, sorted."""
    names = builder(out).info.features["label"].names
    return sorted((names[label], data) for label, data in read_rows(out, split))


def assert_reported(out, printed, reasons):
    """The damaged images, and no others, are printed and listed in damaged.txt."""
    lines = (out / "small" / "1.0.0" / "damaged.txt").read_text().splitlines()
    listed = {pathlib.Path(line.split(": ")[0]).name: line for line in lines}
    assert listed.keys() == reasons.keys()
    for file, reason in reasons.items():
        assert reason in listed[file]
        assert listed[file].replace(": ", ": left out: ", 1) in printed
    assert f"{len(reasons)} damaged images" in printed


def write_folder(root, photos):
    for (class_name, file), data in photos.items():
        (root / class_name).mkdir(parents=True, exist_ok=True)
        (root / class_name / file).write_bytes(data)
    return root


def tar_bytes(files):
    """Bytes of a tar of {name: bytes}."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return data.getvalue()


def write_imagenet(root, train, validation):
    """ImageNet's two archives and the labels; returns the arguments of `functa prepare`."""
    root.mkdir(parents=True, exist_ok=True)
    classes: dict[str, dict[str, bytes]] = {}
    for (name, file), data in train.items():
        classes.setdefault(name, {})[file] = data
    tars = [root / f"ILSVRC2012_img_{split}.tar" for split in ("train", "val")]
    inner = {f"{name}.tar": tar_bytes(files) for name, files in reversed(classes.items())}
    tars[0].write_bytes(tar_bytes(inner))
    mixed = sorted(validation, key=lambda key: (key[1].split("_")[1], key[0]))
    flat = {f"ILSVRC2012_val_{k:08}.JPEG": validation[key] for k, key in enumerate(mixed)}
    tars[1].write_bytes(tar_bytes(flat))
    (root / "labels.txt").write_text("".join(f"{name}\n" for name, _ in mixed))
    return ["--source", *tars, f"--labels={root / 'labels.txt'}"]
