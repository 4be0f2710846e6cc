"""TFDS data sets of images in ArrayRecord files: opening, validation and decoding, without TensorFlow.

A data set lies at data_dir/NAME, data_dir/NAME/VERSION or data_dir/NAME/CONFIG/VERSION, where its
dataset_info.json is; its name is NAME or NAME/CONFIG, optionally with :VERSION. Its features "image"
and "label" are read.
"""

import io
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from etils import epath
from PIL import Image

from functa.data.image_arrays import crop_and_resize
from functa.data.sources import Batch, check_indices
from functa.runtime.errors import DataError
from functa.runtime.storage import thread_map

_VERSION = re.compile(r"\d+\.\d+\.\d+")
_PILLOW_MODES = {1: "L", 3: "RGB"}  # by the number of channels
_METADATA = "dataset_info.json"
# Files whose names begin with a dot are notes of an operating system.
IMAGE_NAME = re.compile(r"[^.].*\.(png|jpe?g)", re.IGNORECASE)
_REPAIR = "copy or prepare the data set again"
FORMAT = tfds.core.FileFormat.ARRAY_RECORD
PREPARE = "`functa prepare NAME --source PATH... --data-dir=DIR` makes one"


def open_builder(name: str, data_dir: epath.PathLike) -> tfds.core.DatasetBuilder:
    """Opens a prepared data set; prepares and downloads nothing.

    Raises:
      DataError: there is no such directory or data set, `name` must select one of several configs, or
        the metadata cannot be read.
    """
    directory = _find(name, epath.Path(data_dir))
    try:
        return tfds.builder_from_directory(directory)
    except Exception as error:  # damaged files make the parsers raise errors of many types
        problem = f"the metadata in {directory} cannot be read ({error}); {_REPAIR}"
        raise DataError([problem]) from error


def _find(name: str, data_dir: epath.Path) -> epath.Path:
    base, _, version = name.partition(":")
    folder = data_dir / base
    if not base or not folder.is_dir():
        content = "does not exist"
        if data_dir.is_dir():
            content = f"holds {', '.join(sorted(path.name for path in data_dir.iterdir())[:10])}"
        raise DataError(
            [
                f"no data set {name!r} in data.data_dir: {data_dir} {content}. Set data.data_dir and"
                f" data.name to a TFDS data set ({PREPARE})"
            ]
        )
    if not version and (folder / _METADATA).exists():
        return folder
    pattern = f"{version or '*'}/{_METADATA}"
    files = [*folder.glob(pattern), *folder.glob(f"*/{pattern}")]
    candidates = [file.parent for file in files if _VERSION.fullmatch(file.parent.name)]
    configs = sorted({str(path.parent.relative_to(data_dir)) for path in candidates})
    if not configs:
        problem = f"neither {folder} nor its folders VERSION and CONFIG/VERSION hold {_METADATA}"
        raise DataError([f"{problem}: its preparation has not finished ({PREPARE})"])
    if len(configs) > 1:
        problem = f"{name!r} has several configs; set data.name to one of {', '.join(configs)}"
        raise DataError([problem])
    return max(candidates, key=lambda path: tuple(map(int, path.name.split("."))))


def validate_features(
    builder: tfds.core.DatasetBuilder, *, image_shape: Sequence[int], num_classes: int
) -> list[str]:
    """Problems with the file format, the image shape and the classes that a data set declares."""
    features, path = builder.info.features, builder.data_path
    if builder.info.file_format != FORMAT:
        file_format = builder.info.file_format.value
        return [f"{path} holds {file_format} files; prepare it with file_format=array_record"]
    if not {"image", "label"} <= set(features):
        return [f"{path} has the features {sorted(features)}, but 'image' and 'label' are needed"]
    problems = []
    image, label = features["image"], features["label"]
    declared = [
        wanted if size is None else size
        for size, wanted in zip(image.shape, image_shape, strict=False)
    ]
    if len(image.shape) != 3 or declared != list(image_shape):
        problems.append(
            f"{path} holds images of shape {image.shape}, but data.image_shape is "
            f"{tuple(image_shape)}; set it to the shape of the images"
        )
    if image.np_dtype != np.uint8:
        problems.append(f"{path} holds {image.np_dtype} images, but uint8 images are needed")
    classes = getattr(label, "num_classes", None)
    if label.shape != () or not np.issubdtype(label.np_dtype, np.integer):
        problems.append(f"the labels in {path} are {label}, but integer scalars are needed")
    elif classes not in (None, num_classes):
        problems.append(
            f"{path} has {classes} classes, but data.num_classes is {num_classes}; "
            f"set it to {classes}"
        )
    return problems


def validate_files(builder: tfds.core.DatasetBuilder, split: str) -> list[str]:
    """Problems with the files of a split: missing, truncated, or a wrong number of records.

    Reads the end of every file but no example.
    """
    path, splits = builder.data_path, builder.info.splits
    try:
        instructions = splits[split].file_instructions
    except (KeyError, ValueError):
        return [
            f"{path} has no split {split!r}; set data.train_split and data.test_split to one of"
            f" {', '.join(splits) or 'none'}"
        ]
    if not sum(instruction.take for instruction in instructions):
        return [f"split {split!r} of {path} has 0 examples"]
    return [problem for problem in thread_map(_file_problem, instructions) if problem]


def _file_problem(instruction: Any) -> str | None:
    path, expected = epath.Path(instruction.filename), instruction.examples_in_shard
    if not path.exists():
        return f"{path} with {expected} records is missing; {_REPAIR}"
    reader = array_record_module.ArrayRecordReader(str(path))
    count = reader.num_records()  # from the end of the file: 0 if it is truncated
    reason = ""
    try:
        reader.close()
    except RuntimeError as error:
        reason = f" ({error})"
    if count == expected and not reason:
        return None
    return (
        f"{path} ({path.stat().length} bytes) is truncated or damaged: it has {count} of {expected} "
        f"records{reason}; {_REPAIR}"
    )


def open_image(encoded: bytes) -> Image.Image:
    """Reads the header of a PNG or JPEG file; the `load` method of the result decodes the pixels.

    Raises:
      ValueError: the image has more than 8 bits per channel, which Pillow would truncate.
      OSError, SyntaxError: the bytes do not begin like a PNG or JPEG file.
    """
    image = Image.open(io.BytesIO(encoded), formats=("PNG", "JPEG"))
    # Byte 24 of a PNG file is its bit depth. Pillow does not open JPEG files of more than 8 bits.
    if image.mode[0] in "IF" or (image.format == "PNG" and encoded[24] > 8):
        raise ValueError(f"the image has more than 8 bits per channel (mode {image.mode})")
    return image


def decode_image(encoded: bytes, *, channels: int) -> np.ndarray:
    """Decodes PNG or JPEG bytes to [H, W, channels] uint8.

    Gray becomes RGB or RGB gray (ITU-R 601); palettes are looked up, alpha channels dropped, CMYK is
    converted. EXIF orientation is ignored, as in published work on such data sets.

    Raises:
      ValueError: more than 8 bits per channel.
      OSError, SyntaxError: the bytes are not a complete PNG or JPEG file.
    """
    with open_image(encoded) as image:
        pixels = image.convert(_PILLOW_MODES[channels])
        return np.asarray(pixels).reshape(image.height, image.width, channels)


class Records:
    """An ImageSource that reads a range of a split from its files at every request.

    Attributes:
      image_shape: (h, w, c) of the images that `read` returns.
      resizes: whether images are cropped and resized, because their stored sizes vary.
    """

    def __init__(
        self,
        builder: tfds.core.DatasetBuilder,
        split: str,
        ids: range,
        *,
        image_shape: Sequence[int],
        num_classes: int,
    ):
        """ids: range of indices of the split. See also images.open_splits."""
        self.num_examples = len(ids)
        self.image_shape = tuple(image_shape)
        self._ids = np.arange(ids.start, ids.stop, dtype=np.int64)
        self._num_classes = num_classes
        self._files = builder.info.splits[split].file_instructions
        features = builder.info.features
        self._encoded = isinstance(features["image"], tfds.features.Image)
        self.resizes = self._encoded and None in features["image"].shape
        # Pillow decodes the images here; features other than image and label are not decoded.
        skip = set(features) - {"label"} - (set() if self._encoded else {"image"})
        decoders = {key: tfds.decode.SkipDecoding() for key in skip}
        self._source = builder.as_data_source(split, decoders=decoders)

    def read(self, indices: np.ndarray) -> Batch:
        """See images.ImageSource."""
        batch = self._read(indices, resize=self.resizes)
        images = np.array(batch["image"], np.uint8).reshape(-1, *self.image_shape)
        return batch | {"image": images}

    def read_originals(self, indices: np.ndarray) -> dict[str, Any]:
        """See images.ImageSource."""
        return self._read(indices, resize=False)

    def _read(self, indices: np.ndarray, *, resize: bool) -> dict[str, Any]:
        ids = self._ids[check_indices(indices, self.num_examples)]
        images, labels = [], []
        for index, record in zip(ids, self._fetch(ids), strict=True):
            try:
                images.append(self._decode(record["image"], resize))
                labels.append(self._checked_label(record["label"]))
            except (OSError, SyntaxError, ValueError) as error:  # SyntaxError: a broken PNG file
                raise DataError([f"{self._place(index)} cannot be used: {error}"]) from error
        return {"image": images, "label": np.array(labels, np.int32), "id": ids}

    def _fetch(self, ids: np.ndarray) -> Sequence[dict[str, Any]]:
        try:
            return self._source.__getitems__(ids.tolist())
        except RuntimeError:
            for index in ids:  # reads one by one to name the damaged record
                try:
                    self._source[int(index)]
                except RuntimeError as error:
                    problem = f"{self._place(index)} is damaged ({error}); {_REPAIR}"
                    raise DataError([problem]) from error
            raise

    def _checked_label(self, label: int) -> int:
        if not 0 <= label < self._num_classes:
            raise ValueError(
                f"label {label}, but data.num_classes={self._num_classes} allows 0 to"
                f" {self._num_classes - 1}"
            )
        return label

    def _decode(self, stored: Any, resize: bool) -> np.ndarray:
        image = decode_image(stored, channels=self.image_shape[2]) if self._encoded else stored
        if resize:
            return crop_and_resize(image, self.image_shape[:2])
        if image.shape != self.image_shape and not self.resizes:
            raise ValueError(f"the image is {image.shape}, not {self.image_shape}")
        return image

    def _place(self, index: int) -> str:
        """File and record of an example of the split, for messages."""
        ends = np.cumsum([file.take for file in self._files])
        k = int(np.searchsorted(ends, index, side="right"))
        file = self._files[k]
        return f"record {file.skip + index - ends[k] + file.take} of {file.filename}"
