"""`functa prepare` from idx files, CIFAR-10 archives and .npz files."""

import gzip
import pickle
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from etils import epath

from functa.data import images
from functa.data.prepare import arrays, writer
from functa.data.prepare.sources import Report
from functa.runtime.errors import DataError, UserError
from tests.support import image_sources
from tests.support.image_sets import SMALL
from tests.support.image_sources import open_source, prepare


@pytest.fixture
def cifar(monkeypatch):
    monkeypatch.setattr(arrays, "_CIFAR_BATCH", 6)
    return image_sources.arrays(train=30, test=6)


def pack(folder):
    path = folder.with_suffix(".tar.gz")
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        archive.add(folder, folder.name)
    return path


@pytest.mark.parametrize("packed", [True, False])
def test_idx(tmp_path, packed, capsys):
    data = image_sources.arrays(shape=(28, 28))
    folder = image_sources.write_idx(tmp_path / "mnist", data, packed=packed)
    assert prepare(tmp_path, "--source", folder) == 0
    image_sources.assert_holds(tmp_path, data)
    assert "30 images, 3 to 3 of each of 10 classes; 30 PNG L" in capsys.readouterr().out


def test_idx_files_listed_one_by_one(tmp_path):
    data = image_sources.arrays(shape=(28, 28))
    first, *others = sorted(image_sources.write_idx(tmp_path / "a", data, packed=True).iterdir())
    assert prepare(tmp_path, f"--source={first}", "--source", *others) == 0
    image_sources.assert_holds(tmp_path, data)
    (tmp_path / "train-copy.idx").write_bytes(gzip.decompress(first.read_bytes()))
    with pytest.raises(DataError, match="a second file for x_t"):
        open_source(tmp_path / "train-copy.idx", first, *others)


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("packed", [True, False])
def test_cifar(tmp_path, cifar, binary, packed):
    folder = image_sources.write_cifar(tmp_path / "cifar-10", cifar, binary=binary)
    assert prepare(tmp_path, "--source", pack(folder) if packed else folder) == 0
    image_sources.assert_holds(tmp_path, cifar)
    names = image_sources.builder(tmp_path).info.features["label"].names
    assert names == image_sources.NAMES


@pytest.mark.parametrize("shape", [(9, 7), (9, 7, 1), (9, 7, 3)])
def test_npz_is_read_as_images(tmp_path, shape):
    data = image_sources.arrays(shape=shape)
    columns = data | {"y_train": data["y_train"][:, None].astype(np.int64)}
    np.savez(tmp_path / "a.npz", label_names=image_sources.NAMES, **columns)
    assert prepare(tmp_path, "--source", tmp_path / "a.npz") == 0
    image_sources.assert_holds(tmp_path, data)
    config = {"data_dir": tmp_path, "image_shape": (*shape, 1)[:3], "num_classes": 10}
    source = images.open_splits(**SMALL | config)["validation"]
    read = source.read(np.arange(7))["image"]
    np.testing.assert_array_equal(read, data["x_train"][23:].reshape(7, 9, 7, -1))


def test_bytes_of_a_record():
    """Data sets that exist must keep their fingerprints; TFDS reads them in other tests."""
    expected = "0a240a110a05696d61676512080a060a0489504e470a0f0a056c6162656c12061a040a02ac02"
    assert writer.record(b"\x89PNG", 300).hex() == expected


def test_equal_sources_give_equal_bytes_in_any_process(tmp_path, monkeypatch, program_env):
    """The order of protobuf's features differs between processes, unless it is fixed."""
    monkeypatch.setattr(writer, "_SHARD_BYTES", 30000)
    np.savez(tmp_path / "a.npz", **(data := image_sources.arrays()))
    assert prepare(tmp_path / "first", "--source", tmp_path / "a.npz", "--jobs=1") == 0
    program = "import sys; from functa.cli import main; from functa.data.prepare import writer\n"
    program += "writer._SHARD_BYTES = 30000; sys.exit(main.main(sys.argv[1:]))"
    words = ["prepare", "small", f"--source={tmp_path / 'a.npz'}", f"--data-dir={tmp_path / 'b'}"]
    subprocess.run([sys.executable, "-c", program, *words], env=program_env, check=True)
    digests = image_sources.digests(tmp_path / "first")
    assert image_sources.digests(tmp_path / "b") == digests
    assert sum("train" in name for name in digests) == 4  # 92,160 bytes of pixels
    image_sources.assert_holds(tmp_path / "first", data)


# --- Damaged sources


IMAGES, LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"


@pytest.mark.parametrize(
    ("file", "change", "problem"),
    [
        (IMAGES, lambda content: content[:-1], "9407 bytes"),
        (IMAGES, lambda content: content + b"x", "9409 bytes"),
        (IMAGES, lambda content: content[:6], "00000803"),
        (IMAGES, lambda content: content[:10], "truncated"),
        (IMAGES, lambda _: image_sources.idx_bytes(np.zeros((12, 28, 27), np.uint8)), "28, 27"),
        (LABELS, lambda _: b"", "nothing"),
        (LABELS, lambda _: b"<!DOCTYPE html>", "3c21444f"),
        (LABELS, lambda _: image_sources.idx_bytes(np.zeros(11, np.uint8)), "but 11 labels"),
        (LABELS, lambda _: image_sources.idx_bytes(np.full(12, 10, np.uint8)), "labels 10 to 10"),
    ],
)
def test_damaged_idx(tmp_path, file, change, problem):
    data = image_sources.arrays(shape=(28, 28))
    folder = image_sources.write_idx(tmp_path / "mnist", data, packed=False)
    (folder / file).write_bytes(change((folder / file).read_bytes()))
    with pytest.raises(DataError, match=problem):
        open_source(folder)
    (folder / file).unlink()
    with pytest.raises(DataError, match="_test: missing"):
        open_source(folder)


def test_all_damaged_files_are_named(tmp_path, cifar):
    data = image_sources.arrays(shape=(28, 28))
    folder = image_sources.write_idx(tmp_path / "mnist", data, packed=True)
    for key in ("train-images-idx3", "t10k-images-idx3"):
        path = folder / f"{key}-ubyte.gz"
        path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(
        DataError, match=r"train-images(.|\n)*t10k-images|t10k(.|\n)*train"
    ) as error:
        open_source(folder)
    assert len(error.value.problems) == 2


@pytest.mark.parametrize("binary", [True, False])
def test_damaged_cifar(tmp_path, cifar, binary):
    folder = image_sources.write_cifar(tmp_path / "cifar-10", cifar, binary=binary)
    suffix = ".bin" * binary
    path = folder / f"data_batch_3{suffix}"
    path.write_bytes(path.read_bytes()[:-100])
    (folder / f"data_batch_4{suffix}").unlink()
    with pytest.raises(DataError) as error:
        open_source(folder)
    first, second = error.value.problems
    assert first.startswith(f"data_batch_3{suffix}: damaged")
    assert second == f"data_batch_4{suffix}: missing"


def test_truncated_cifar_archive(tmp_path, cifar):
    packed = pack(image_sources.write_cifar(tmp_path / "cifar-10", cifar, binary=False))
    packed.write_bytes(packed.read_bytes()[: packed.stat().st_size // 2])
    with pytest.raises(DataError, match=r"cifar-10.tar.gz: truncated(.|\n)*: missing"):
        open_source(packed)


def test_pickles_cannot_run_code(tmp_path, cifar):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "harm"), "w"))

    folder = image_sources.write_cifar(tmp_path / "cifar-10", cifar, binary=False)
    (folder / "data_batch_2").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(DataError, match="data_batch_2: damaged.*open"):
        open_source(folder)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"x_train": np.zeros((30, 8, 8, 3), np.float32)}, r"float32 \(30, 8, 8, 3\)"),
        ({"x_train": np.zeros((30, 8, 8, 2), np.uint8)}, "1 or 3"),
        ({"y_train": np.zeros(30, np.float32)}, r"float32 \(30,\)"),
        ({"y_train": np.full(30, -1)}, "labels -1 to -1"),
        ({"y_train": np.zeros((30, 10), np.int64)}, r"\(30, 10\)"),
        ({"label_names": ["a", "b"]}, "labels 0 to 9, but 2 classes"),
        ({"y_test": np.array([{}] * 12)}, "a.npz: .*damaged"),
    ],
)
def test_inconsistent_npz(tmp_path, changes, problem):
    np.savez(tmp_path / "a.npz", **image_sources.arrays() | changes)
    with pytest.raises(DataError, match=problem):
        open_source(tmp_path / "a.npz")


def test_truncated_and_incomplete_npz(tmp_path):
    data = image_sources.arrays()
    path = tmp_path / "a.npz"
    np.savez(path, **data)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="a.npz: truncated or damaged"):
        open_source(path)
    at = content.index(data["x_train"].tobytes())
    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    with pytest.raises(DataError, match="a.npz: truncated or damaged"):
        open_source(path)
    del data["y_test"]
    np.savez(path, **data)
    with pytest.raises(DataError, match="y_test: missing"):
        open_source(path)


# --- Arguments


def test_unusable_arguments(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    np.savez(tmp_path / "a.npz", **image_sources.arrays())
    with pytest.raises(UserError, match="unknown format: .*a.txt"):
        open_source(tmp_path / "a.txt")
    with pytest.raises(UserError, match=r"no such file.*b.npz.*c.npz"):
        open_source(tmp_path / "b.npz", tmp_path / "c.npz")
    for changes, flag in (
        ({"test_fraction": 0.1}, "--test-fraction"),
        ({"test_fraction": 1.0}, "--test-fraction.*1.0"),
        ({"test_fraction": 0.0}, "--test-fraction.*0.0"),
        ({"min_side": 8}, "--min-side"),
        ({"min_side": 0}, "--min-side.*0"),
        ({"labels": str(tmp_path / "a.npz")}, "--labels"),
    ):
        with pytest.raises(UserError, match=flag):
            open_source(tmp_path / "a.npz", **changes)


def test_refusals_of_the_command(tmp_path, capsys):
    np.savez(tmp_path / "a.npz", **image_sources.arrays())
    out, source = tmp_path / "out", f"--source={tmp_path / 'a.npz'}"
    for folder, arguments, name, word in (
        (out, [source, "--jobs=0"], "small", "--jobs"),
        (out, [source], "My-Set", "My-Set"),
        ("gs://bucket", [source], "small", "gs://bucket"),
        (out, [f"--source={tmp_path / 'b.npz'}"], "small", "b.npz"),
    ):
        assert prepare(folder, *arguments, name=name) == 2
        assert word in capsys.readouterr().err
    assert not out.exists()


def test_an_existing_data_set_is_never_changed(tmp_path, capsys):
    np.savez(tmp_path / "a.npz", **image_sources.arrays())
    assert prepare(tmp_path / "out", "--source", tmp_path / "a.npz") == 0
    before = image_sources.digests(tmp_path / "out")
    np.savez(tmp_path / "a.npz", **image_sources.arrays(seed=1))
    for source in ("a.npz", "missing"):  # it is checked before a long source is read
        assert prepare(tmp_path / "out", "--source", tmp_path / source) == 2
        assert "1.0.0 exists" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"1.0.0 exists"):
        writer.write(
            open_source(tmp_path / "a.npz"),
            name="small",
            data_dir=epath.Path(tmp_path / "out"),
            jobs=2,
            report=Report(print),
        )
    assert image_sources.digests(tmp_path / "out") == before
