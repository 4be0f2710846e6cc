import pathlib
import subprocess
import sys
from concurrent import futures
from unittest import mock

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from functa.data import image_arrays, image_records, images
from functa.runtime.errors import DataError
from tests.support.image_sets import SMALL, encode, pixels, write, write_random

DIGITS = SMALL | {
    "source": "digits",
    "image_shape": (8, 8, 1),
    "num_classes": 10,
    "validation_examples": 150,
}


@pytest.fixture
def small(tmp_path):
    """23 train images, 8 test images, and the config of their data set."""
    train, test = pixels(23), pixels(8, seed=1)
    splits = {
        "train": ([encode(image) for image in train], [k % 4 for k in range(23)]),
        "test": ([encode(image) for image in test], [k % 4 for k in range(8)]),
    }
    write(tmp_path / "small" / "1.0.0", splits, shape=(6, 5, 3))
    return train, test, SMALL | {"data_dir": tmp_path}


def read_all(source):
    return source.read(np.arange(source.num_examples))


def problems_of(config):
    """Problems of opening the splits, or else of reading them."""
    try:
        return images.validate_splits(images.open_splits(**config))
    except DataError as error:
        return error.problems


def test_digits_are_those_of_scikit_learn_scaled_to_bytes():
    from sklearn import datasets

    splits = [read_all(source) for source in images.open_splits(**DIGITS).values()]
    assert [len(split["id"]) for split in splits] == [1287, 150, 360]
    actual = np.concatenate([split["image"] for split in splits])
    labels = np.concatenate([split["label"] for split in splits])
    original = datasets.load_digits()
    expected = [round(value * 255 / 16) for value in original.images.reshape(-1).tolist()]
    expected = np.array(expected, np.uint8).reshape(-1, 8, 8, 1)
    assert actual.dtype == np.uint8
    assert sorted(map(bytes, actual)) == sorted(map(bytes, expected))
    label_of = {bytes(image): y for image, y in zip(expected, original.target, strict=True)}
    assert [label_of[bytes(image)] for image in actual] == labels.tolist()


def test_digits_split_is_fixed():
    splits = images.open_splits(**DIGITS)
    test = read_all(splits["test"])
    assert test["label"][:12].tolist() == [5, 3, 0, 7, 8, 9, 4, 6, 1, 5, 2, 3]
    assert test["id"].tolist() == list(range(360))
    assert read_all(splits["validation"])["id"].tolist() == list(range(1287, 1437))


def test_stratified_order_keeps_class_proportions_in_every_stretch():
    labels = np.repeat([0, 1, 2], [300, 100, 20])
    order = images.stratified_order(labels)
    assert sorted(order) == list(range(420))
    for start in range(0, 420 - 84, 7):
        counts = np.bincount(labels[order[start : start + 84]], minlength=3)
        assert np.all(np.abs(counts - [60, 20, 4]) <= 1)
    first_class = order[labels[order] == 0]
    assert np.corrcoef(np.arange(300), first_class)[0, 1] < 0.2  # shuffled within a class


@pytest.mark.parametrize("cache", ["host", "none"])
def test_tfds_source_reads_the_stored_examples(small, cache):
    train, test, config = small
    config |= {"cache": cache}
    assert problems_of(config) == []
    splits = images.open_splits(**config)
    assert [splits[s].num_examples for s in ("train", "validation", "test")] == [16, 7, 8]
    indices = np.array([5, 0, 15, 5])
    batch = splits["train"].read(indices)
    assert {k: v.dtype.name for k, v in batch.items()} == {
        "image": "uint8",
        "label": "int32",
        "id": "int64",
    }
    np.testing.assert_array_equal(batch["image"], train[indices])
    np.testing.assert_array_equal(batch["label"], indices % 4)
    np.testing.assert_array_equal(batch["id"], indices)
    validation = read_all(splits["validation"])
    np.testing.assert_array_equal(validation["image"], train[16:])
    np.testing.assert_array_equal(validation["id"], np.arange(16, 23))
    np.testing.assert_array_equal(read_all(splits["test"])["image"], test)
    assert splits["train"].read(np.arange(0))["image"].shape == (0, 6, 5, 3)
    for index in (-1, 16):
        with pytest.raises(IndexError, match="16"):
            splits["train"].read(np.array([index]))


def test_slices_and_limits_of_splits(small):
    splits = images.open_splits(**small[2] | {"max_examples": 3})
    ids = [read_all(source)["id"].tolist() for source in splits.values()]
    assert ids == [[0, 1, 2], [16, 17, 18], [0, 1, 2]]
    changes = {"train_split": "train[10:]", "validation_examples": 1}
    splits = images.open_splits(**small[2] | changes)
    np.testing.assert_array_equal(read_all(splits["train"])["image"], small[0][10:22])


def test_host_cache_decodes_each_image_once_for_all_threads(small, monkeypatch):
    decode = mock.Mock(wraps=image_records.decode_image)
    monkeypatch.setattr(image_records, "decode_image", decode)
    source = images.open_splits(**small[2])["train"]
    assert decode.call_count == 0
    with futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(source.read, [np.arange(16)] * 4))
    assert decode.call_count == 16


def test_opens_the_highest_version_or_the_requested_one(tmp_path):
    for version, count in (("9.0.0", 20), ("10.0.0", 30)):
        write_random(tmp_path / "small" / version, count)
    for name, count in (("small", 30), ("small:9.0.0", 20), ("small/9.0.0", 20)):
        splits = images.open_splits(**SMALL | {"data_dir": tmp_path, "name": name})
        assert splits["test"].num_examples == count


def test_one_of_several_configs_must_be_selected(tmp_path):
    for name in ("blur", "noise"):
        write_random(tmp_path / "small" / name / "1.0.0", 20)
    config = SMALL | {"data_dir": tmp_path}
    assert "small/blur, small/noise" in problems_of(config)[0]
    assert problems_of(config | {"name": "small/noise"}) == []


def test_images_of_varying_sizes_are_cropped_to_the_center_and_resized(tmp_path):
    wide = np.broadcast_to(4 * np.arange(61, dtype=np.uint8)[None, :, None], (40, 61, 3))
    tall, exact = pixels(1, (60, 30, 3))[0], pixels(1, (8, 8, 3))[0]
    encoded = [encode(wide), encode(tall), encode(exact)] * 10
    write_random(tmp_path / "small", 30, encoded=encoded, shape=(None, None, 3))
    config = SMALL | {"data_dir": tmp_path, "image_shape": (8, 8, 3)}
    actual = read_all(images.open_splits(**config)["test"])["image"]
    short_side = Image.fromarray(tall).resize((8, 16), Image.Resampling.BICUBIC)
    difference = actual[1].astype(int) - np.asarray(short_side)[4:12]
    assert np.abs(difference).max() <= 1  # rounding between Pillow's two passes
    np.testing.assert_array_equal(actual[2], exact)
    # 40 of 61 columns leave 10.5 on either side, so the center of the ramp (120) is that of the crop.
    ramp = actual[0].astype(np.float64)
    assert np.abs(ramp + ramp[:, ::-1] - 240).max() <= 1
    assert (ramp[0, 6, 0] - ramp[0, 1, 0]) / 5 == pytest.approx(4 * 40 / 8, abs=0.3)


SHARD = "small-train.array_record-00001-of-00002"


def replace(old, new):
    return lambda file: file.write_text(file.read_text().replace(old, new))


def truncate(file):
    file.write_bytes(file.read_bytes()[:-70])


FILE_FAULTS = [
    (SHARD, lambda file: file.write_bytes(b""), ["00001-of-00002 (0 bytes)", "0 of 11"]),
    (SHARD, truncate, ["00001-of-00002 (", "0 of 11"]),
    (SHARD, pathlib.Path.unlink, ["00001-of-00002"]),
    ("dataset_info.json", pathlib.Path.unlink, ["dataset_info.json"]),
    ("dataset_info.json", replace("}", ""), ["metadata"]),
    ("dataset_info.json", replace('"array_record"', '"tfrecord"'), ["tfrecord", "array_record"]),
    ("features.json", replace('"label"', '"class"'), ["'label'"]),
]


@pytest.mark.parametrize(("file", "damage", "parts"), FILE_FAULTS)
def test_open_splits_reports_damaged_files(small, file, damage, parts):
    damage(small[2]["data_dir"] / "small" / "1.0.0" / file)
    with pytest.raises(DataError) as error:
        images.open_splits(**small[2])
    (problem,) = error.value.problems
    assert all(part in problem for part in parts)


CONFIG_FAULTS = [
    ({"name": "large"}, ["'large'", "small", "functa prepare"]),
    ({"name": ""}, ["''", "small"]),
    ({"data_dir": "/nowhere"}, ["/nowhere"]),
    ({"train_split": "training"}, ["'training'", "train, test"]),
    ({"image_shape": (6, 6, 3)}, ["(6, 5, 3)", "(6, 6, 3)"]),
    ({"image_shape": (6, 5, 1)}, ["(6, 5, 3)", "(6, 5, 1)"]),
    ({"image_shape": (6, 5)}, ["data.image_shape", "(6, 5)"]),
    ({"num_classes": 3}, ["4 classes", "data.num_classes"]),
    ({"validation_examples": 23}, ["data.validation_examples", "1 and 22"]),
    ({"validation_examples": 0}, ["data.validation_examples", "1 and 22"]),
    ({"max_examples": -1}, ["data.max_examples", "-1"]),
    ({"source": "folder"}, ["data.source", "'folder'"]),
    ({"cache": "device"}, ["data.cache", "'device'"]),
]


@pytest.mark.parametrize(("changes", "parts"), CONFIG_FAULTS)
def test_open_splits_reports_impossible_values(small, changes, parts):
    with pytest.raises(DataError) as error:
        images.open_splits(**small[2] | changes)
    (problem,) = error.value.problems
    assert all(part in problem for part in parts)


def test_open_splits_reports_all_faults_together(small):
    truncate(small[2]["data_dir"] / "small" / "1.0.0" / SHARD)
    changes = {"num_classes": 3, "image_shape": (7, 7, 3), "test_split": "exam", "cache": "?"}
    assert len(problems_of(small[2] | changes)) == 5
    changes = {"num_classes": 9, "image_shape": (9, 9, 1), "cache": "?"}
    assert len(problems_of(DIGITS | changes)) == 3


def test_labels_out_of_range_are_reported(tmp_path):
    label = tfds.features.Scalar(np.int64)  # declares no number of classes
    write_random(tmp_path / "small", 20, labels=[0] * 10 + [4] + [0] * 9, label=label)
    # cache=host reads every record; cache=none the first, middle and last, here that of test.
    for cache, count in (("host", 2), ("none", 1)):
        problems = problems_of(SMALL | {"data_dir": tmp_path, "cache": cache})
        assert len(problems) == count
        for part in ("record 0 of", "label 4", "0 to 3"):
            assert part in problems[-1]


def test_damage_between_the_validated_records_is_reported_when_it_is_read(small):
    directory = small[2]["data_dir"] / "small" / "1.0.0"
    shard = directory / "small-train.array_record-00000-of-00002"
    content = shard.read_bytes()
    position = content.index(encode(small[0][3])) + 50
    shard.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
    assert problems_of(small[2] | {"cache": "none"}) == []
    (problem,) = problems_of(small[2])
    assert "record 3 of" in problem
    for cache in ("host", "none"):
        source = images.open_splits(**small[2] | {"cache": cache})["train"]
        with pytest.raises(DataError, match=r"record 3 of .*-00000-of-00002"):
            source.read(np.arange(16))


def test_opens_imagenet_as_tfds_prepares_it(tmp_path):
    """Its features, splits and file names; the labels of test are not published but -1."""
    classes = [f"n{k:08}" for k in range(1000)]
    photographs = [encode(image, "JPEG") for image in pixels(12, (20, 26, 3))]
    photographs += [encode(image, "JPEG", mode="L") for image in pixels(8, (30, 20, 3), seed=1)]
    write(
        tmp_path / "imagenet2012" / "5.1.0",
        {
            "train": (photographs, [50 * k for k in range(20)]),
            "validation": (photographs[::-1], [999 - k for k in range(20)]),
            "test": (photographs, [-1] * 20),
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
    assert problems_of(config) == []
    splits = images.open_splits(**config)
    assert read_all(splits["train"])["label"].tolist() == [50 * k for k in range(15)]
    test = read_all(splits["test"])
    assert test["label"].tolist() == [999 - k for k in range(20)]
    expected = image_records.decode_image(photographs[-1], channels=3)
    expected = image_arrays.crop_and_resize(expected, (16, 16))
    np.testing.assert_array_equal(test["image"][0], expected)
    names = {key: config[key] for key in ("source", "name", "data_dir", "num_classes")}
    assert images.class_names(**names) == classes
    assert "label -1" in problems_of(config | {"test_split": "test"})[0]


def test_reading_needs_no_tensorflow(small):
    program = (
        "import sys; from functa.data import images, loader; import numpy as np\n"
        f"config = dict({small[2] | {'data_dir': str(small[2]['data_dir'])}!r})\n"
        "images.open_splits(**config)['train'].read(np.arange(3))\n"
        "assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
