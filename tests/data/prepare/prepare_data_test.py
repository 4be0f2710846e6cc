"""Published archives become TFDS data sets bit for bit; damaged ones become nothing."""

import gzip
import hashlib
import io
import pickle
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import zlib

import numpy as np
import pytest
import tensorflow_datasets as tfds
from etils import epath
from PIL import Image

from functa.data import images
from functa.data.prepare import (
    archives,
    shards,
    sources,
    tfds_metadata,
    writer,
)
from tools import prepare_data

NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def arrays(train=30, test=12, shape=(32, 32, 3), seed=0):
    random = np.random.default_rng(seed)
    return {
        "x_train": random.integers(0, 256, (train, *shape), dtype=np.uint8),
        "y_train": (np.arange(train) * 7 % 10).astype(np.uint8),
        "x_test": random.integers(0, 256, (test, *shape), dtype=np.uint8),
        "y_test": (np.arange(test) % 10).astype(np.uint8),
    }


CONFIG = {
    "source": "tfds",
    "name": "small",
    "image_shape": (32, 32, 3),
    "num_classes": 10,
    "train_split": "train",
    "test_split": "test",
    "validation_examples": 10,
    "max_examples": 0,
    "cache": "none",
}


# --- Writers of the published formats ----------------------------------------------------------


def idx_bytes(array):
    return (
        bytes([0, 0, 8, array.ndim])
        + struct.pack(f">{array.ndim}I", *array.shape)
        + array.tobytes()
    )


def write_idx(folder, data, packed):
    folder.mkdir()
    names = {
        "x_train": "train-images-idx3-ubyte",
        "y_train": "train-labels-idx1-ubyte",
        "x_test": "t10k-images-idx3-ubyte",
        "y_test": "t10k-labels-idx1-ubyte",
    }
    for key, name in names.items():
        content = idx_bytes(data[key])
        path = folder / (name + ".gz" * packed)
        path.write_bytes(gzip.compress(content, 1) if packed else content)
    return folder


def python_2_pickle(value):
    """Protocol 2 as Python 2 and its NumPy wrote it, in which CIFAR-10 is published."""

    def text(data):
        return b"T" + struct.pack("<i", len(data)) + data

    def number(k):
        return b"J" + struct.pack("<i", k)

    def dump(value):
        if isinstance(value, dict):
            items = b"".join(dump(k) + dump(v) for k, v in value.items())
            return b"}(" + items + b"u"
        if isinstance(value, list):
            return b"](" + b"".join(map(dump, value)) + b"e"
        if isinstance(value, np.ndarray):
            made = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n"
            made += number(0) + b"\x85" + text(b"b") + b"\x87R"
            kind = b"cnumpy\ndtype\n" + text(b"u1") + number(0) + number(1) + b"\x87R("
            kind += number(3) + text(b"|") + b"NNN" + number(-1) + number(-1) + number(0) + b"tb"
            shape = number(value.shape[0]) + number(value.shape[1]) + b"\x86"
            return made + b"(" + number(1) + shape + kind + b"\x89" + text(value.tobytes()) + b"tb"
        return number(value) if isinstance(value, int) else text(value)

    return b"\x80\x02" + dump(value) + b"."


def write_cifar(folder, data, binary):
    """The six batches and the names; returns the folder."""
    folder.mkdir(parents=True)
    train = np.array_split(np.arange(len(data["x_train"])), 5)
    batches = {f"data_batch_{k + 1}": ("train", rows) for k, rows in enumerate(train)}
    batches["test_batch"] = ("test", np.arange(len(data["x_test"])))
    for name, (split, rows) in batches.items():
        pixels = data[f"x_{split}"][rows].transpose(0, 3, 1, 2).reshape(-1, 3072)
        labels = data[f"y_{split}"][rows]
        if binary:
            content = np.concatenate([labels[:, None], pixels], axis=1).tobytes()
            (folder / f"{name}.bin").write_bytes(content)
        else:
            batch = {b"batch_label": b"x", b"labels": labels.tolist(), b"data": pixels}
            (folder / name).write_bytes(python_2_pickle(batch))
    if binary:
        (folder / "batches.meta.txt").write_text("\n".join(NAMES) + "\n\n")
    else:
        meta = {b"num_cases_per_batch": 6, b"label_names": [name.encode() for name in NAMES]}
        (folder / "batches.meta").write_bytes(python_2_pickle(meta))
    return folder


def tar(folder):
    path = folder.with_suffix(".tar.gz")
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        archive.add(folder, folder.name)
    return path


@pytest.fixture
def small_batches(monkeypatch):
    monkeypatch.setattr(archives, "_CIFAR_RECORDS", 6)
    return arrays(train=30, test=6)


def photo(seed, size=(20, 30), file_format="JPEG", mode="RGB"):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(data, file_format)
    return data.getvalue()


def write_photos(root, counts):
    """`counts` of images for each CLASS or train/CLASS; JPEG of varying size, one of them a PNG."""
    stored = {}
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True)
        for k in range(count):
            form = "PNG" if k == 1 else "JPEG"
            path = root / folder / f"{k:03}.{form}"
            path.write_bytes(photo(zlib.crc32(f"{folder} {k}".encode()), (20 + k % 3, 30), form))
            stored[f"{folder}/{path.name}"] = path.read_bytes()
    return stored


# --- Helpers -----------------------------------------------------------------------------------


def run(tmp_path, *sources, name="small", options=()):
    words = [name, "--source", *map(str, sources), f"--data_dir={tmp_path / 'out'}", *options]
    return prepare_data.main(words)


def stored(tmp_path, split, name="small"):
    """As TFDS reads it."""
    builder = tfds.builder_from_directory(tmp_path / "out" / name / "1.0.0")
    rows = list(builder.as_data_source(split))
    return np.stack([row["image"] for row in rows]), [int(row["label"]) for row in rows]


def assert_holds(tmp_path, data):
    for split in ("train", "test"):
        pixels, labels = stored(tmp_path, split)
        expected = data[f"x_{split}"]
        np.testing.assert_array_equal(pixels, expected.reshape(*expected.shape[:3], -1))
        assert labels == data[f"y_{split}"].tolist()


def left_behind(tmp_path):
    """What lies where the data set is to be."""
    folder = tmp_path / "out" / "small"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def digests(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# --- Whole sources -----------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [True, False])
def test_idx(tmp_path, packed, capsys):
    data = arrays(shape=(28, 28))
    folder = write_idx(tmp_path / "mnist", data, packed)
    assert run(tmp_path, folder) == 0
    assert_holds(tmp_path, data)
    report = capsys.readouterr().out.splitlines()
    ending = "-ubyte.gz" if packed else "-ubyte"
    assert f"train-images-idx3{ending}: 30 images 28x28" in report
    assert f"t10k-labels-idx1{ending}: 12 labels 0 to 9" in report
    assert any("train: 30 images, 3 to 3 of each of 10 classes" in line for line in report)


def test_idx_files_one_by_one_and_both_packed_and_unpacked(tmp_path, capsys):
    data = arrays(shape=(28, 28))
    packed = write_idx(tmp_path / "packed", data, True)
    assert run(tmp_path, *sorted(packed.iterdir())) == 0
    assert_holds(tmp_path, data)
    for path in list(packed.iterdir()):
        (packed / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
    assert run(tmp_path, packed, name="again") == 0
    assert "gz: not read, as the unpacked file is beside it" in capsys.readouterr().out
    np.testing.assert_array_equal(stored(tmp_path, "test", "again")[0][..., 0], data["x_test"])


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("packed", [True, False])
def test_cifar(tmp_path, small_batches, binary, packed, capsys):
    folder = write_cifar(tmp_path / "cifar-10", small_batches, binary)
    assert run(tmp_path, tar(folder) if packed else folder) == 0
    assert_holds(tmp_path, small_batches)
    builder = tfds.builder_from_directory(tmp_path / "out" / "small" / "1.0.0")
    assert builder.info.features["label"].names == NAMES
    assert "6 images 32x32x3, 6 labels" in capsys.readouterr().out


@pytest.mark.parametrize(("size", "label"), [(0, 0), (1, 1), (100, 127), (200, 128), (99999, 999)])
def test_records_are_what_tfds_would_write(size, label):
    features = tfds.features.FeaturesDict(
        {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(num_classes=1000)}
    )
    encoded = b"x" * size
    record = tfds_metadata.record(encoded, label)
    own = features.serialize_example({"image": io.BytesIO(encoded), "label": label})
    assert len(record) == len(own)
    raw = {"image": tfds.decode.SkipDecoding()}
    read = features.deserialize_example_np(record, decoders=raw)
    assert (bytes(read["image"]), int(read["label"])) == (encoded, label)


@pytest.mark.parametrize("shape", [(9, 7), (9, 7, 1), (9, 7, 3)])
def test_npz(tmp_path, shape):
    data = arrays(shape=shape)
    columns = data | {"y_train": data["y_train"][:, None].astype(np.int64)}
    np.savez(tmp_path / "a.npz", label_names=NAMES, **columns)
    assert run(tmp_path, tmp_path / "a.npz") == 0
    assert_holds(tmp_path, data)
    config = CONFIG | {"data_dir": tmp_path / "out", "image_shape": (*shape, 1)[:3]}
    splits = images.open_splits(**config)
    assert images.validate_splits(splits) == []
    read = splits["validation"].read(np.arange(10))
    np.testing.assert_array_equal(read["image"], data["x_train"][20:].reshape(10, 9, 7, -1))


def test_folder_keeps_bytes_and_mixes_classes(tmp_path, capsys):
    root = tmp_path / "photos"
    counts = {"train/cat": 20, "train/dog": 10, "val/cat": 4, "val/dog": 2}
    files = write_photos(root, counts)
    (root / "train/cat/notes.txt").write_text("x")
    assert run(tmp_path, root) == 0
    builder = tfds.builder_from_directory(tmp_path / "out" / "small" / "1.0.0")
    assert builder.info.features["image"].shape == (None, None, 3)
    assert builder.info.features["label"].names == ["cat", "dog"]
    raw = {"image": tfds.decode.SkipDecoding()}
    for split, folder in (("train", "train"), ("validation", "val")):
        rows = list(builder.as_data_source(split, decoders=raw))
        for label, name in enumerate(["cat", "dog"]):
            inside = sorted(bytes(row["image"]) for row in rows if row["label"] == label)
            assert inside == sorted(v for k, v in files.items() if k.startswith(f"{folder}/{name}"))
    labels = [int(row["label"]) for row in builder.as_data_source("train", decoders=raw)]
    assert all(9 <= labels[k : k + 15].count(0) <= 11 for k in range(15))
    report = capsys.readouterr().out
    assert "train/cat: 20 images; not read: notes.txt" in report
    assert "10 to 20 of each of 2 classes; 28 JPEG RGB, 2 PNG RGB" in report


def test_images_beside_class_folders_are_told_where_to_go(tmp_path, capsys):
    write_photos(tmp_path / "photos", {"cat": 4})
    assert run(tmp_path, tmp_path / "photos" / "cat", options=["--test_fraction=0.5"]) == 2
    assert "put each into the folder of its class" in capsys.readouterr().err


def test_notes_beside_class_folders_make_them_no_idx_files(tmp_path):
    write_photos(tmp_path / "photos", {"cat": 4, "dog": 4})
    (tmp_path / "photos" / "class_to_idx.json").write_text('{"cat": 0, "dog": 1}')
    assert run(tmp_path, tmp_path / "photos", options=["--test_fraction=0.5"]) == 0


def test_folder_without_splits_is_divided_within_classes(tmp_path):
    root = tmp_path / "photos"
    files = write_photos(root, {"cat": 20, "dog": 10})
    assert run(tmp_path, root, options=["--test_fraction=0.2"]) == 0
    builder = tfds.builder_from_directory(tmp_path / "out" / "small" / "1.0.0")
    raw = {"image": tfds.decode.SkipDecoding()}
    rows = {s: list(builder.as_data_source(s, decoders=raw)) for s in ("train", "test")}
    assert sorted(int(row["label"]) for row in rows["test"]) == [0] * 4 + [1] * 2
    seen = sorted(bytes(row["image"]) for part in rows.values() for row in part)
    assert seen == sorted(files.values())


def test_folder_of_one_size_and_grey_is_declared_so(tmp_path):
    for split in ("train", "test"):
        (tmp_path / "photos" / split / "cat").mkdir(parents=True)
        for k in range(3):
            data = photo(k, (12, 10), "PNG", "L")
            (tmp_path / "photos" / split / "cat" / f"{k}.png").write_bytes(data)
    assert run(tmp_path, tmp_path / "photos") == 0
    builder = tfds.builder_from_directory(tmp_path / "out" / "small" / "1.0.0")
    assert builder.info.features["image"].shape == (12, 10, 1)
    assert stored(tmp_path, "train")[0].shape == (3, 12, 10, 1)


def test_damaged_photos_are_listed_and_left_out(tmp_path, capsys):
    root = tmp_path / "photos"
    write_photos(root, {"train/cat": 5, "test/cat": 3})
    cut = root / "train/cat/000.JPEG"
    cut.write_bytes(cut.read_bytes()[:-200])
    (root / "train/cat/004.JPEG").write_bytes(b"<html>not found</html>")
    assert run(tmp_path, root) == 1
    out = capsys.readouterr().out
    assert "train/cat/000.JPEG: left out: OSError: image file is truncated" in out
    assert "train/cat/004.JPEG: left out: not a PNG or JPEG that can be read" in out
    assert "2 damaged images, listed above and in damaged.txt, are left out" in out
    builder = tfds.builder_from_directory(tmp_path / "out" / "small" / "1.0.0")
    assert builder.info.splits["train"].num_examples == 3


def test_output_is_deterministic_and_sharded(tmp_path, monkeypatch, program_env):
    monkeypatch.setattr(shards, "_SHARD_BYTES", 30000)
    np.savez(tmp_path / "a.npz", **(data := arrays()))
    for name in ("small", "again"):
        (tmp_path / name).mkdir()
        assert run(tmp_path / name, tmp_path / "a.npz") == 0
    first, second = (digests(tmp_path / name) for name in ("small", "again"))
    assert first == second
    program = "import sys; from functa.data.prepare import shards; from tools import prepare_data\n"
    program += "shards._SHARD_BYTES = 30000; sys.exit(prepare_data.main(sys.argv[1:]))"
    words = ["small", f"--source={tmp_path / 'a.npz'}", f"--data_dir={tmp_path / 'other' / 'out'}"]
    subprocess.run([sys.executable, "-c", program, *words], env=program_env, check=True)
    assert digests(tmp_path / "other") == first  # protobuf's order differs between processes
    assert sum("train" in name for name in first) == 4  # 92,160 bytes of pixels
    assert_holds(tmp_path / "small", data)


# --- What is refused ---------------------------------------------------------------------------


def refused(tmp_path, capsys, *words):
    """Asserts that the run before this wrote nothing and said `words`."""
    captured = capsys.readouterr()
    assert "nothing is written" in captured.err
    for word in words:
        assert word in captured.out + captured.err
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("train-images-idx3-ubyte", lambda b: b[:-1], "(30, 28, 28), but 23519 bytes follow"),
        ("train-images-idx3-ubyte", lambda b: b + b"x", "but 23521 bytes follow"),
        ("train-images-idx3-ubyte", lambda b: b[:6], "it starts with 00000803"),
        ("train-images-idx3-ubyte", lambda b: b[:10], "its header is cut off"),
        ("train-labels-idx1-ubyte", lambda b: b"", "starts with nothing"),
        ("t10k-labels-idx1-ubyte", lambda b: b"<!DOCTYPE html>", "starts with 3c21444f"),
        (
            "t10k-labels-idx1-ubyte",
            lambda b: idx_bytes(np.zeros(11, np.uint8)),
            "12 images, but 11",
        ),
        (
            "t10k-labels-idx1-ubyte",
            lambda b: idx_bytes(np.full(12, 10, np.uint8)),
            "test split: DAMAGED: labels 10 to 10 of 10 classes",
        ),
        (
            "t10k-images-idx3-ubyte",
            lambda b: idx_bytes(np.zeros((12, 28, 27), np.uint8)),
            "(28, 27, 1), those of train (28, 28, 1)",
        ),
        ("t10k-images-idx3-ubyte", lambda b: None, "x_test: DAMAGED: missing"),
    ],
)
@pytest.mark.parametrize("packed", [True, False])
def test_damaged_idx(tmp_path, capsys, file, change, words, packed):
    folder = write_idx(tmp_path / "mnist", arrays(shape=(28, 28)), packed)
    path = folder / (file + ".gz" * packed)
    content = change(gzip.decompress(path.read_bytes()) if packed else path.read_bytes())
    if content is None:
        path.unlink()
    else:
        path.write_bytes(gzip.compress(content) if packed else content)
    assert run(tmp_path, folder) == 2
    refused(tmp_path, capsys, words)


def test_cut_gzip_names_every_damaged_file(tmp_path, capsys):
    folder = write_idx(tmp_path / "mnist", arrays(shape=(28, 28)), True)
    for key in ("train-images-idx3", "t10k-images-idx3"):
        path = folder / f"{key}-ubyte.gz"
        path.write_bytes(path.read_bytes()[:-1000])
    assert run(tmp_path, folder) == 2
    refused(tmp_path, capsys, "train-images-idx3-ubyte.gz: DAMAGED", "2 damaged: ")


@pytest.mark.parametrize("binary", [True, False])
def test_damaged_cifar(tmp_path, capsys, small_batches, binary):
    folder = write_cifar(tmp_path / "cifar-10", small_batches, binary)
    ending = ".bin" * binary
    path = folder / f"data_batch_3{ending}"
    path.write_bytes(path.read_bytes()[:-100])
    (folder / f"data_batch_4{ending}").unlink()
    assert run(tmp_path, folder) == 2
    refused(
        tmp_path,
        capsys,
        f"data_batch_3{ending}: DAMAGED",
        f"data_batch_4{ending}: DAMAGED: missing",
        f"2 damaged: data_batch_3{ending}, data_batch_4{ending}",
    )


def test_cut_tar(tmp_path, capsys, small_batches):
    packed = tar(write_cifar(tmp_path / "cifar-10", small_batches, False))
    packed.write_bytes(packed.read_bytes()[: packed.stat().st_size // 2])
    assert run(tmp_path, packed) == 2
    refused(tmp_path, capsys, "cifar-10.tar.gz: DAMAGED: ends or breaks after", "missing")


def test_pickles_cannot_run_programs(tmp_path, capsys, small_batches):
    folder = write_cifar(tmp_path / "cifar-10", small_batches, False)

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "harm"), "w"))

    (folder / "data_batch_2").write_bytes(pickle.dumps(Evil()))
    assert run(tmp_path, folder) == 2
    refused(tmp_path, capsys, "data_batch_2: DAMAGED", "which CIFAR-10 never does")
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"x_train": np.zeros((30, 8, 8, 3), np.float32)}, "images float32 (30, 8, 8, 3)"),
        ({"x_train": np.zeros((30, 8, 8, 2), np.uint8)}, "1 or 3"),
        ({"y_train": np.zeros(30, np.float32)}, "labels float32 (30,), not integers"),
        ({"y_train": np.full(30, -1)}, "labels -1 to -1"),
        ({"y_train": np.zeros((30, 10), np.int64)}, "(30, 10), not integers"),
        ({"label_names": ["a", "b"]}, "labels 0 to 9 of 2 classes"),
        ({"y_test": np.array([{}] * 12)}, "DAMAGED: cut off or broken"),
    ],
)
def test_wrong_npz(tmp_path, capsys, changes, words):
    np.savez(tmp_path / "a.npz", **arrays() | changes)
    assert run(tmp_path, tmp_path / "a.npz") == 2
    refused(tmp_path, capsys, words)


def test_cut_and_incomplete_npz(tmp_path, capsys):
    data = arrays()
    np.savez(tmp_path / "a.npz", **data)
    whole = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(whole[: len(whole) // 2])
    assert run(tmp_path, tmp_path / "a.npz") == 2
    refused(tmp_path, capsys, "a.npz: DAMAGED")
    at = whole.index(data["x_train"].tobytes())
    (tmp_path / "a.npz").write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    assert run(tmp_path, tmp_path / "a.npz") == 2
    refused(tmp_path, capsys, "a.npz: DAMAGED", "Bad CRC-32")
    del data["y_test"]
    np.savez(tmp_path / "a.npz", **data)
    assert run(tmp_path, tmp_path / "a.npz") == 2
    refused(tmp_path, capsys, "y_test: DAMAGED: missing")


def test_unusable_folders(tmp_path, capsys):
    root = tmp_path / "photos"
    write_photos(root, {"train/cat": 2, "test/dog": 2, "test/cat": 2})
    (root / "train/empty").mkdir()
    assert run(tmp_path, root) == 2
    refused(
        tmp_path, capsys, "test: class dog: DAMAGED: a class that train", "train/empty: DAMAGED: no"
    )
    assert run(tmp_path, root, options=["--test_fraction=0.5"]) == 2
    refused(tmp_path, capsys, "leave --test_fraction out")
    assert run(tmp_path, root / "train") == 2
    refused(tmp_path, capsys, "set --test_fraction")
    assert run(tmp_path, root, options=["--test_fraction=1.5"]) == 2
    refused(tmp_path, capsys, "between 0 and 1, not 1.5")


def test_unknown_and_missing_sources(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("x")
    assert run(tmp_path, tmp_path / "a.txt") == 2
    refused(tmp_path, capsys, "cannot tell what")
    assert run(tmp_path, tmp_path / "b.npz", tmp_path / "c.npz") == 2
    refused(tmp_path, capsys, "no such file or folder", "b.npz", "c.npz")
    np.savez(tmp_path / "a.npz", **arrays())
    assert run(tmp_path, tmp_path / "a.npz", options=["--test_fraction=0.1"]) == 2
    refused(tmp_path, capsys, "has its own test split")
    assert run(tmp_path, tmp_path / "a.npz", options=["--min_side=8"]) == 2
    refused(tmp_path, capsys, "--min_side is for photographs")
    assert run(tmp_path, tmp_path / "a.npz", options=[f"--labels={tmp_path / 'a.npz'}"]) == 2
    refused(tmp_path, capsys, "--labels is for a tar")
    assert run(tmp_path, tmp_path / "a.npz", options=["--jobs=0"]) == 2
    refused(tmp_path, capsys, "--jobs must be at least 1, not 0")
    assert run(tmp_path, tmp_path / "a.npz", name="My-Set") == 2
    refused(tmp_path, capsys, "not 'My-Set'")
    assert prepare_data.main(["small", "--source=x", "--data_dir=gs://bucket"]) == 2
    refused(tmp_path, capsys, "local folder, then copy it to gs://bucket")


def test_an_existing_set_is_never_touched(tmp_path, capsys):
    np.savez(tmp_path / "a.npz", **arrays())
    assert run(tmp_path, tmp_path / "a.npz") == 0
    before = digests(tmp_path / "out")
    np.savez(tmp_path / "a.npz", **arrays(seed=1))
    assert run(tmp_path, tmp_path / "a.npz") == 2
    assert "exists and is left as it is; delete it first" in capsys.readouterr().err
    assert run(tmp_path, tmp_path / "nowhere") == 2  # told before a long source is read
    assert "exists and is left as it is" in capsys.readouterr().err
    report = sources.Report(print)
    archive = archives.read_npz(epath.Path(tmp_path / "a.npz"), report)
    with pytest.raises(FileExistsError, match="left as it is"):
        writer.write(
            archive, name="small", data_dir=epath.Path(tmp_path / "out"), jobs=2, report=report
        )
    assert digests(tmp_path / "out") == before


def test_a_full_disk_leaves_nothing(tmp_path, capsys, monkeypatch):
    class Full(shards.array_record_module.ArrayRecordWriter):
        def close(self):
            super().close()
            raise RuntimeError("write() failed: No space left on device")

    monkeypatch.setattr(shards.array_record_module, "ArrayRecordWriter", Full)
    np.savez(tmp_path / "a.npz", **arrays())
    assert run(tmp_path, tmp_path / "a.npz") == 2
    refused(tmp_path, capsys, "No space left on device")


def test_a_killed_run_leaves_no_data_set(tmp_path, capsys, program_env):
    np.savez(tmp_path / "a.npz", **arrays())
    program = (
        "import os, signal, sys; from etils import epath; from tools import prepare_data\n"
        "kill = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "type(epath.Path('x')).rename = kill  # all is written but not yet in its place\n"
        "prepare_data.main(sys.argv[1:])"
    )
    words = ["small", f"--source={tmp_path / 'a.npz'}", f"--data_dir={tmp_path / 'out'}"]
    done = subprocess.run([sys.executable, "-c", program, *words], env=program_env, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert left_behind(tmp_path) == ["1.0.0.lock", "1.0.0.unfinished"]
    with pytest.raises(ValueError, match="has not finished"):
        images.open_splits(**CONFIG | {"data_dir": tmp_path / "out"})
    assert run(tmp_path, tmp_path / "a.npz") == 0
    assert capsys.readouterr().out.count("finished earlier") == 2
    assert left_behind(tmp_path) == ["1.0.0"]
    assert_holds(tmp_path, arrays())


def test_command_line_takes_sources_after_the_equals_sign(tmp_path):
    folder = write_idx(tmp_path / "mnist", data := arrays(shape=(28, 28)), True)
    first, *others = map(str, sorted(folder.iterdir()))
    words = ["small", f"--source={first}", *others, f"--data_dir={tmp_path / 'out'}"]
    assert prepare_data.main(words) == 0
    assert_holds(tmp_path, data)


def test_real_photographs(tmp_path, test_data, capsys):
    for split in ("train", "test"):
        for name in ("hat", "skirt"):
            folder = test_data / "clothing" / "test" / name
            shutil.copytree(folder, tmp_path / "photos" / split / name)
    assert run(tmp_path, tmp_path / "photos") == 0
    assert "hat: 12 images" in capsys.readouterr().out
