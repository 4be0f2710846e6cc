"""Image sources: what is read is what was stored, and faults are named before anything is used."""

import io
import json
import subprocess
import sys
import threading

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

from functa.data import image_records, images
from functa.runtime import errors

DIGITS = {
    "source": "digits",
    "name": "digits",
    "data_dir": "nowhere",
    "image_shape": (8, 8, 1),
    "num_classes": 10,
    "train_split": "train",
    "test_split": "test",
    "validation_examples": 150,
    "max_examples": 0,
    "cache": "host",
}
SMALL = DIGITS | {
    "source": "tfds",
    "name": "small",
    "image_shape": (6, 5, 3),
    "num_classes": 4,
    "validation_examples": 7,
}


def encode(pixels, file_format="PNG", mode=None):
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    data = io.BytesIO()
    (image.convert(mode) if mode else image).save(data, file_format)
    return data.getvalue()


def write_set(
    directory, splits, *, shape, label=None, encoding_format=None, shards=2, name="small"
):
    """A TFDS data set of {split: (encoded images, labels)}, besides a feature nobody asked for."""
    directory.mkdir(parents=True)
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=shape, encoding_format=encoding_format),
            "label": label or tfds.features.ClassLabel(num_classes=4),
            "file_name": tfds.features.Text(),
        }
    )
    infos = []
    for split, (encoded, labels) in splits.items():
        parts = np.array_split(np.arange(len(labels)), shards)
        for shard, part in enumerate(parts):
            file = f"{name}-{split}.array_record-{shard:05d}-of-{shards:05d}"
            writer = ArrayRecordWriter(str(directory / file), "group_size:1,uncompressed")
            for k in part:
                example = {"image": io.BytesIO(encoded[k]), "label": labels[k], "file_name": "x"}
                writer.write(features.serialize_example(example))
            writer.close()
        lengths = [len(part) for part in parts]
        infos.append(tfds.core.SplitInfo(name=split, shard_lengths=lengths, num_bytes=1))
    tfds.folder_dataset.write_metadata(
        data_dir=directory,
        features=features,
        split_infos=infos,
        filename_template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        check_data=False,
    )


def pixels(n, shape=(6, 5, 3), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


@pytest.fixture
def small(tmp_path):
    """23 train and 8 test images, and the config that reads them."""
    train, test = pixels(23), pixels(8, seed=1)
    splits = {
        "train": ([encode(x) for x in train], [k % 4 for k in range(23)]),
        "test": ([encode(x) for x in test], [k % 4 for k in range(8)]),
    }
    write_set(tmp_path / "small" / "1.0.0", splits, shape=(6, 5, 3))
    return train, test, SMALL | {"data_dir": tmp_path}


def whole(source):
    return source.read(np.arange(source.num_examples))


def test_digits_are_scikit_learns_scaled_to_bytes():
    from sklearn import datasets

    splits = images.open_splits(**DIGITS)
    read = {split: whole(source) for split, source in splits.items()}
    assert [len(v["id"]) for v in read.values()] == [1287, 150, 360]
    together = np.concatenate([read[s]["image"] for s in ("train", "validation", "test")])
    labels = np.concatenate([read[s]["label"] for s in ("train", "validation", "test")])
    original = datasets.load_digits()
    expected = [round(v * 255 / 16) for v in original.images.reshape(-1).tolist()]
    expected = np.array(expected, np.uint8).reshape(-1, 8, 8, 1)
    assert together.dtype == np.uint8
    assert sorted(map(bytes, together)) == sorted(map(bytes, expected))
    by_image = {bytes(x): y for x, y in zip(expected, original.target, strict=True)}
    assert [by_image[bytes(x)] for x in together] == labels.tolist()


def test_digits_split_is_fixed_and_stratified():
    splits = images.open_splits(**DIGITS)
    labels = {split: whole(source)["label"] for split, source in splits.items()}
    counts = {split: np.bincount(each, minlength=10) for split, each in labels.items()}
    overall = sum(counts.values())
    assert overall.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    for split, each in counts.items():
        assert np.abs(each - overall * splits[split].num_examples / 1797).max() <= 1
    assert labels["test"][:12].tolist() == [5, 3, 0, 7, 8, 9, 4, 6, 1, 5, 2, 3]
    assert whole(splits["test"])["id"].tolist() == list(range(360))
    assert whole(splits["validation"])["id"].tolist() == list(range(1287, 1437))


def test_stratified_order_keeps_proportions_in_every_stretch():
    labels = np.repeat([0, 1, 2], [300, 100, 20])
    order = images.stratified_order(labels)
    assert sorted(order) == list(range(420))
    for start in range(0, 420 - 84, 7):
        counts = np.bincount(labels[order[start : start + 84]], minlength=3)
        assert np.all(np.abs(counts - [60, 20, 4]) <= 1)
    inside = order[labels[order] == 0]
    assert np.corrcoef(np.arange(300), inside)[0, 1] < 0.2  # shuffled within a class


@pytest.mark.parametrize("cache", ["host", "none"])
def test_tfds_reads_what_was_stored(small, cache):
    train, test, config = small
    assert images.check(**config | {"cache": cache}) == []
    splits = images.open_splits(**config | {"cache": cache})
    assert [splits[s].num_examples for s in ("train", "validation", "test")] == [16, 7, 8]
    picks = np.array([5, 0, 15, 5])
    read = splits["train"].read(picks)
    assert {k: v.dtype.name for k, v in read.items()} == {
        "image": "uint8",
        "label": "int32",
        "id": "int64",
    }
    np.testing.assert_array_equal(read["image"], train[picks])
    np.testing.assert_array_equal(read["label"], picks % 4)
    np.testing.assert_array_equal(read["id"], picks)
    read = whole(splits["validation"])
    np.testing.assert_array_equal(read["image"], train[16:])
    np.testing.assert_array_equal(read["id"], np.arange(16, 23))
    np.testing.assert_array_equal(whole(splits["test"])["image"], test)
    for wrong in (-1, 16):
        with pytest.raises(IndexError, match="of a split of 16 examples"):
            splits["train"].read(np.array([wrong]))


def test_max_examples_caps_every_split_after_the_division(small):
    splits = images.open_splits(**small[2] | {"max_examples": 3})
    assert {k: whole(v)["id"].tolist() for k, v in splits.items()} == {
        "train": [0, 1, 2],
        "validation": [16, 17, 18],
        "test": [0, 1, 2],
    }


def test_slices_of_splits(small):
    changes = {"train_split": "train[10:]", "validation_examples": 2}
    splits = images.open_splits(**small[2] | changes)
    np.testing.assert_array_equal(whole(splits["train"])["image"], small[0][10:21])


def test_host_cache_decodes_once_for_all_threads(small, monkeypatch):
    decoded = []
    original = image_records.decode_image
    monkeypatch.setattr(
        image_records, "decode_image", lambda *a, **k: decoded.append(1) or original(*a, **k)
    )
    source = images.open_splits(**small[2])["train"]
    assert not decoded  # lazily
    threads = [threading.Thread(target=source.read, args=(np.arange(16),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(decoded) == 16


def test_finds_the_highest_version_and_the_named_one(tmp_path):
    for version, n in (("9.0.0", 20), ("10.0.0", 30)):
        part = ([encode(x) for x in pixels(n)], [0] * n)
        write_set(tmp_path / "small" / version, {"train": part, "test": part}, shape=(6, 5, 3))
    config = SMALL | {"data_dir": tmp_path}
    assert images.open_splits(**config)["test"].num_examples == 30
    assert images.open_splits(**config | {"name": "small:9.0.0"})["test"].num_examples == 20
    assert images.open_splits(**config | {"name": "small/9.0.0"})["test"].num_examples == 20


def test_several_configs_must_be_told_apart(tmp_path):
    part = ([encode(x) for x in pixels(20)], [0] * 20)
    for word in ("blur", "noise"):
        directory = tmp_path / "small" / word / "1.0.0"
        write_set(directory, {"train": part, "test": part}, shape=(6, 5, 3))
    config = SMALL | {"data_dir": tmp_path}
    assert "small/blur, small/noise" in images.check(**config)[0]
    assert images.check(**config | {"name": "small/noise"}) == []


def test_varying_sizes_are_cropped_to_the_centre_and_resized(tmp_path):
    wide = np.broadcast_to(4 * np.arange(61, dtype=np.uint8)[None, :, None], (40, 61, 3))
    tall, exact = pixels(1, (60, 30, 3))[0], pixels(1, (8, 8, 3))[0]
    part = ([encode(wide), encode(tall), encode(exact)] * 10, [0] * 30)
    write_set(tmp_path / "small", {"train": part, "test": part}, shape=(None, None, 3))
    config = SMALL | {"data_dir": tmp_path, "image_shape": (8, 8, 3)}
    assert images.check(**config) == []
    read = whole(images.open_splits(**config)["test"])["image"]
    short_side = Image.fromarray(tall).resize((8, 16), Image.Resampling.BICUBIC)
    difference = read[1].astype(int) - np.asarray(short_side)[4:12]
    assert np.abs(difference).max() <= 1  # rounding between Pillow's two passes
    np.testing.assert_array_equal(read[2], exact)
    # 40 of 61 columns leave 10.5 to either side, so the ramp's middle (120) is the crop's.
    ramp = read[0].astype(np.float64)
    assert np.abs(ramp + ramp[:, ::-1] - 240).max() <= 1
    assert (ramp[0, 6, 0] - ramp[0, 1, 0]) / 5 == pytest.approx(4 * 40 / 8, abs=0.3)


@pytest.mark.parametrize("mode", ["P", "RGBA", "L", "1"])
def test_other_modes_become_rgb_as_pillow_converts_them(mode):
    image = Image.fromarray(pixels(1)[0]).convert(mode)
    data = io.BytesIO()
    image.save(data, "PNG")
    decoded = image_records.decode_image(data.getvalue(), image_shape=(6, 5, 3), resize=False)
    np.testing.assert_array_equal(decoded, np.asarray(image.convert("RGB")))


def test_decode_refuses_deep_and_broken_images():
    deep = io.BytesIO()
    Image.fromarray(np.full((6, 5), 40000, np.uint16)).save(deep, "PNG")
    with pytest.raises(ValueError, match="more than 8 bits"):
        image_records.decode_image(deep.getvalue(), image_shape=(6, 5, 1), resize=False)
    with pytest.raises(ValueError, match="6x5, not 5x6"):
        image_records.decode_image(encode(pixels(1)[0]), image_shape=(5, 6, 3), resize=False)
    with pytest.raises(OSError, match="truncated"):
        image_records.decode_image(encode(pixels(1)[0])[:-40], image_shape=(6, 5, 3), resize=False)


def damage(small, what):
    """Breaks the data set on disk, or returns changes to the config."""
    directory = small[2]["data_dir"] / "small" / "1.0.0"
    shard = directory / "small-train.array_record-00001-of-00002"
    if what == "empty file":
        shard.write_bytes(b"")
    elif what == "cut file":
        shard.write_bytes(shard.read_bytes()[:-70])
    elif what == "no file":
        shard.unlink()
    elif what == "no metadata":
        (directory / "dataset_info.json").unlink()
    elif what == "broken metadata":
        (directory / "dataset_info.json").write_text("{")
    elif what == "another format":
        info = json.loads((directory / "dataset_info.json").read_text())
        (directory / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": "tfrecord"}))


FAULTS = [
    ("empty file", {}, ["00001-of-00002 (0 bytes)", "0 of 11 records"]),
    ("cut file", {}, ["00001-of-00002 (", "0 of 11 records"]),
    ("no file", {}, ["00001-of-00002 is missing"]),
    ("no metadata", {}, ["holds no dataset_info.json"]),
    ("broken metadata", {}, ["metadata", "cannot be read"]),
    ("another format", {}, ["tfrecord", "file_format=array_record"]),
    ("", {"name": "large"}, ["no data set 'large'", "holds small", "functa prepare"]),
    ("", {"name": ""}, ["no data set ''", "holds small"]),
    ("", {"data_dir": "/nowhere"}, ["/nowhere does not exist"]),
    ("", {"train_split": "training"}, ["no split 'training'", "it has train, test"]),
    ("", {"image_shape": (6, 6, 3)}, ["(6, 5, 3)", "(6, 6, 3)"]),
    ("", {"image_shape": (6, 5, 1)}, ["(6, 5, 3)", "(6, 5, 1)"]),
    ("", {"image_shape": (6, 5)}, ["(6, 5)", "(h, w, c)"]),
    ("", {"num_classes": 3}, ["4 classes", "is 3"]),
    ("", {"validation_examples": 23}, ["23", "between 1 and 22"]),
    ("", {"validation_examples": 0}, ["is 0", "between 1 and 22"]),
    ("", {"max_examples": -1}, ["is -1"]),
    ("", {"source": "folder"}, ["'folder'", "digits and tfds"]),
    ("", {"cache": "device"}, ["'device'", "host and none"]),
]


@pytest.mark.parametrize(("what", "changes", "words"), FAULTS)
def test_check_names_the_fault(small, what, changes, words):
    damage(small, what)
    problems = images.check(**small[2] | changes)
    assert len(problems) == 1
    for word in words:
        assert word in problems[0]
    with pytest.raises(errors.DataError) as error:
        images.open_splits(**small[2] | changes)
    assert error.value.problems == problems


def test_check_lists_all_faults_together(small):
    damage(small, "empty file")
    changes = {"num_classes": 3, "image_shape": (7, 7, 3), "test_split": "exam", "cache": "?"}
    problems = images.check(**small[2] | changes)
    assert len(problems) == 5
    changes = {"num_classes": 9, "image_shape": (9, 9, 1), "cache": "?"}
    assert len(images.check(**DIGITS | changes)) == 3


def test_a_misspelt_key_is_a_type_error():
    with pytest.raises(TypeError, match="nme"):
        images.check(**DIGITS, nme="x")


def test_labels_out_of_range_are_found(tmp_path):
    label = tfds.features.Scalar(np.int64)  # declares no number of classes
    part = ([encode(x) for x in pixels(20)], [0] * 10 + [4] + [0] * 9)
    write_set(tmp_path / "small", {"train": part, "test": part}, shape=(6, 5, 3), label=label)
    # Cached splits are read whole; of others the first, middle and last record, here that of test.
    for cache, count in (("host", 2), ("none", 1)):
        problems = images.check(**SMALL | {"data_dir": tmp_path, "cache": cache})
        assert len(problems) == count
        assert "record 0 of" in problems[-1]
        assert "label 4" in problems[-1]
        assert "0 to 3" in problems[-1]


def test_damage_between_the_samples_is_found_when_it_is_read(small):
    directory = small[2]["data_dir"] / "small" / "1.0.0"
    shard = directory / "small-train.array_record-00000-of-00002"
    stored = shard.read_bytes()
    place = stored.index(encode(small[0][3])) + 50
    shard.write_bytes(stored[:place] + bytes([stored[place] ^ 1]) + stored[place + 1 :])
    assert images.check(**small[2] | {"cache": "none"}) == []
    (problem,) = images.check(**small[2])  # a split that is kept in memory is read whole
    assert "record 3 of" in problem
    for cache in ("host", "none"):
        source = images.open_splits(**small[2] | {"cache": cache})["train"]
        with pytest.raises(ValueError, match=r"record 3 of .*-00000-of-00002 is damaged"):
            source.read(np.arange(16))


def test_features_that_are_needed(tmp_path, small):
    features = small[2]["data_dir"] / "small" / "1.0.0" / "features.json"
    features.write_text(features.read_text().replace('"label"', '"class"'))
    assert "'image' and 'label' are needed" in images.check(**small[2])[0]


def test_imagenet_as_tfds_prepares_it(tmp_path):
    """Its features, splits and file names; labels of test are not published, and -1."""
    classes = [f"n{k:08}" for k in range(1000)]
    photos = [encode(x, "JPEG") for x in pixels(12, (20, 26, 3))]
    photos += [encode(x, "JPEG", mode="L") for x in pixels(8, (30, 20, 3), seed=1)]
    write_set(
        tmp_path / "imagenet2012" / "5.1.0",
        {
            "train": (photos, [50 * k for k in range(20)]),
            "validation": (photos[::-1], [999 - k for k in range(20)]),
            "test": (photos, [-1] * 20),
        },
        shape=(None, None, 3),
        label=tfds.features.ClassLabel(names=classes),
        encoding_format="jpeg",
        shards=4,
        name="imagenet2012",
    )
    config = SMALL | {
        "name": "imagenet2012:5.1.0",
        "data_dir": tmp_path,
        "image_shape": (16, 16, 3),
        "num_classes": 1000,
        "test_split": "validation",
        "validation_examples": 5,
        "cache": "none",
    }
    assert images.check(**config) == []
    splits = images.open_splits(**config)
    assert whole(splits["train"])["label"].tolist() == [50 * k for k in range(15)]
    test = whole(splits["test"])
    assert test["label"].tolist() == [999 - k for k in range(20)]
    expected = image_records.decode_image(photos[-1], image_shape=(16, 16, 3), resize=True)
    np.testing.assert_array_equal(test["image"][0], expected)
    names = {key: config[key] for key in ("source", "name", "data_dir", "num_classes")}
    assert images.class_names(**names) == classes
    assert "label -1" in images.check(**config | {"test_split": "test"})[0]


def test_no_tensorflow(small):
    program = (
        "import sys; from functa.data import images, pipeline; import numpy as np\n"
        f"config = dict({small[2] | {'data_dir': str(small[2]['data_dir'])}!r})\n"
        "assert images.check(**config) == []\n"
        "images.open_splits(**config)['train'].read(np.arange(3))\n"
        "assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
