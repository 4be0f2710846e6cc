"""Small TFDS data sets of images in ArrayRecord files."""

import io

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

# config.data of the data set "small": 6x5x3 images of 4 classes.
SMALL = {
    "source": "tfds",
    "name": "small",
    "data_dir": "/nowhere",
    "image_shape": (6, 5, 3),
    "num_classes": 4,
    "train_split": "train",
    "test_split": "test",
    "validation_examples": 7,
    "max_examples": 0,
    "cache": "host",
}


def pixels(count, shape=(6, 5, 3), seed=0):
    """Random images [count, *shape] uint8."""
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def encode(image, file_format="PNG", mode=None):
    """PNG or JPEG bytes of an image [h, w, c]."""
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    stream = io.BytesIO()
    (picture.convert(mode) if mode else picture).save(stream, file_format)
    return stream.getvalue()


def write(directory, splits, *, shape, label=None, encoding_format=None, shards=2, name="small"):
    """Writes splits {split: (encoded images, labels)}, with one more feature that nobody reads."""
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


def write_random(directory, count, *, encoded=None, labels=None, shape=(6, 5, 3), **options):
    """Writes a data set whose train and test splits hold the same images."""
    encoded = encoded or [encode(image) for image in pixels(count)]
    part = (encoded, labels or [0] * count)
    write(directory, {"train": part, "test": part}, shape=shape, **options)
