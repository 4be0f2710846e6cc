"""TFDS data sets of images in ArrayRecord files: found, checked and decoded, without TensorFlow.

A data set lies at data_dir/NAME, data_dir/NAME/VERSION or data_dir/NAME/CONFIG/VERSION, wherever
dataset_info.json is; `name` may be NAME or NAME/CONFIG, either with :VERSION behind it. Its
features "image" and "label" are read.
"""

import io
import re
from collections.abc import Callable, Sequence
from concurrent import futures
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from etils import epath
from PIL import Image

from functa.runtime.errors import DataError

_VERSION = re.compile(r"\d+\.\d+\.\d+")
_MODES = {1: "L", 3: "RGB"}  # Pillow's, by the number of channels
_FILES_AT_ONCE = 32  # opened by a check; on a remote disk each is a round trip
_AGAIN = "Copy or prepare the data set again"
FORMAT = tfds.core.FileFormat.ARRAY_RECORD
PREPARE = "`functa prepare NAME --source PATH... --data-dir=DIR` makes one"


def open_builder(name: str, data_dir: epath.PathLike) -> tfds.core.DatasetBuilder:
    """Opens a prepared data set; builds and downloads nothing.

    Raises:
      ValueError: no such directory or data set, several configs to choose from, or metadata that
        cannot be read.
    """
    directory = _find(name, epath.Path(data_dir))
    try:
        return tfds.builder_from_directory(directory)
    except Exception as error:  # whatever a damaged file makes the parsers raise
        raise ValueError(
            f"the metadata in {directory} cannot be read ({error}); prepare the data set again"
        ) from error


def _find(name: str, data_dir: epath.Path) -> epath.Path:
    base, _, version = name.partition(":")
    folder = data_dir / base
    if not base or not folder.is_dir():
        held = "does not exist"
        if data_dir.is_dir():
            there = sorted(path.name for path in data_dir.iterdir())
            held = f"holds {', '.join(there[:10]) or 'nothing'}{', ...' * (len(there) > 10)}"
        raise ValueError(
            f"no data set {name!r} in data.data_dir: {data_dir} {held}. Set data.data_dir and "
            f"data.name to a TFDS data set ({PREPARE})"
        )
    if (folder / "dataset_info.json").exists() and not version:
        return folder
    configs = [folder, *(path for path in sorted(folder.iterdir()) if path.is_dir())]
    found = [
        path
        for config in configs
        for path in config.iterdir()
        if _VERSION.fullmatch(path.name)
        and path.name == (version or path.name)
        and (path / "dataset_info.json").exists()
    ]
    if not found:
        raise ValueError(
            f"{folder} holds no dataset_info.json, nor do its subfolders "
            f"{version or 'VERSION'} or CONFIG/{version or 'VERSION'}: it is empty or was not "
            f"finished ({PREPARE})"
        )
    if len({path.parent for path in found}) > 1:
        choices = sorted({str(path.parent.relative_to(data_dir)) for path in found})
        raise ValueError(
            f"{name!r} has several configs; set data.name to one of {', '.join(choices)}"
        )
    return max(found, key=lambda path: tuple(map(int, path.name.split("."))))


def check_features(
    builder: tfds.core.DatasetBuilder, *, image_shape: Sequence[int], num_classes: int
) -> list[str]:
    """Problems of what a data set declares: its format, the images' shape, the classes."""
    features, where = builder.info.features, builder.data_path
    if builder.info.file_format != FORMAT:
        form = builder.info.file_format.value
        return [f"{where} holds {form} files; prepare it with file_format=array_record"]
    if not {"image", "label"} <= set(features):
        return [f"{where} has the features {sorted(features)}, but 'image' and 'label' are needed"]
    problems = []
    image, label = features["image"], features["label"]
    fits = [own in (None, wanted) for own, wanted in zip(image.shape, image_shape, strict=False)]
    if len(image.shape) != 3 or not all(fits):
        problems.append(
            f"{where} holds images of shape {image.shape}, but data.image_shape is "
            f"{tuple(image_shape)}; set it to the images' own"
        )
    if image.np_dtype != np.uint8:
        problems.append(f"{where} holds {image.np_dtype} images; only uint8 ones can be read")
    classes = getattr(label, "num_classes", None)
    if label.shape != () or not np.issubdtype(label.np_dtype, np.integer):
        problems.append(f"the labels in {where} are {label}, but one integer each is needed")
    elif classes not in (None, num_classes):
        problems.append(
            f"{where} has {classes} classes, but data.num_classes is {num_classes}; "
            f"set it to {classes}"
        )
    return problems


def check_files(builder: tfds.core.DatasetBuilder, split: str) -> list[str]:
    """Problems of a split's files: missing, cut off, another number of records than recorded.

    Reads the end of every file but no example.
    """
    try:
        instructions = builder.info.splits[split].file_instructions
    except (KeyError, ValueError):
        known = ", ".join(builder.info.splits) or "none"
        return [
            f"{builder.data_path} has no split {split!r}; it has {known}: name one by "
            "data.train_split or data.test_split"
        ]
    if not sum(each.take for each in instructions):
        return [f"split {split!r} of {builder.data_path} has 0 examples"]
    with futures.ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
        return [problem for problem in pool.map(_check_file, instructions) if problem]


def _check_file(instruction: Any) -> str | None:
    path, expected = epath.Path(instruction.filename), instruction.examples_in_shard
    if not path.exists():
        return f"{path} is missing: {expected} records. {_AGAIN}"
    reader = array_record_module.ArrayRecordReader(str(path))
    held = reader.num_records()  # noted at the end of the file: 0 if it is cut off
    try:
        reader.close()
        reason = ""
    except RuntimeError as error:
        reason = f" ({error})"
    if held == expected and not reason:
        return None
    return (
        f"{path} ({path.stat().length} bytes) is cut off or damaged: it shows {held} of {expected} "
        f"records{reason}. {_AGAIN}"
    )


def open_image(encoded: bytes) -> Image.Image:
    """Reads the header of a PNG or JPEG file; `load` of what is returned decodes it.

    Raises:
      ValueError: more than 8 bits a channel. Pillow would cut those of colour images to 8.
      OSError, SyntaxError: bytes that do not begin like a PNG or JPEG.
    """
    image = Image.open(io.BytesIO(encoded), formats=("PNG", "JPEG"))
    # The header of a PNG has its depth at a fixed place; deeper JPEGs are unknown to Pillow.
    if image.mode[0] in "IF" or (image.format == "PNG" and encoded[24] > 8):
        raise ValueError(f"the image has more than 8 bits a channel (mode {image.mode})")
    return image


def decode_image(encoded: bytes, *, image_shape: Sequence[int], resize: bool) -> np.ndarray:
    """PNG or JPEG bytes -> [h, w, c] uint8.

    Grey becomes RGB and RGB grey (ITU-R 601) as c asks, palettes are looked up, an alpha channel
    is dropped, CMYK is converted; EXIF orientation is ignored, as in published work on such
    folders.

    Args:
      image_shape: h, w and c (1 or 3).
      resize: the rule for photographs, whose sizes vary: the largest centred part with the aspect
        ratio w : h, resized to h x w by Pillow's antialiased bicubic filter (the same as resizing
        the short side and cropping).
    Raises:
      ValueError: another size while `resize` is false, or more than 8 bits a channel.
      OSError, SyntaxError: bytes that are not a whole PNG or JPEG.
    """
    with open_image(encoded) as image:
        image.load()
        return fit_image(image, image_shape=image_shape, resize=resize)


def fit_image(image: Image.Image, *, image_shape: Sequence[int], resize: bool) -> np.ndarray:
    """A decoded image -> [h, w, c] uint8; arguments and ValueError as of `decode_image`."""
    h, w, c = image_shape
    pixels = image if image.mode == _MODES[c] else image.convert(_MODES[c])
    if resize and pixels.size != (w, h):
        scale = min(pixels.width / w, pixels.height / h)
        left, top = (pixels.width - w * scale) / 2, (pixels.height - h * scale) / 2
        box = (left, top, pixels.width - left, pixels.height - top)
        pixels = pixels.resize((w, h), Image.Resampling.BICUBIC, box)
    if pixels.size != (w, h):
        raise ValueError(f"the image is {pixels.height}x{pixels.width}, not {h}x{w}")
    return np.asarray(pixels).reshape(h, w, c)


def decode_whole(encoded: bytes, *, image_shape: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """PNG or JPEG bytes -> (what `decode_image` makes of a photograph, [H, W, c] uint8 in its own size)."""
    with open_image(encoded) as image:
        image.load()
        fitted = fit_image(image, image_shape=image_shape, resize=True)
        own = image.height, image.width, image_shape[2]
        return fitted, fit_image(image, image_shape=own, resize=False)


class Records:
    """One range of a split, read from its files at every request.

    Args:
      ids: the range of the split's own indices.
    Raises:
      ValueError: the features or the split do not fit; see `check_features`, `check_files`.
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
        self.num_examples = len(ids)
        self.image_shape = tuple(image_shape)
        self._ids = np.arange(ids.start, ids.stop, dtype=np.int64)
        self._num_classes = num_classes
        self._files = builder.info.splits[split].file_instructions
        features = builder.info.features
        self._encoded = isinstance(features["image"], tfds.features.Image)
        self.resizes = None in features["image"].shape  # photographs, whose sizes vary
        # Bytes as they are: Pillow decodes them here; other features of the set are never decoded.
        skipped = set(features) - {"label"} - (set() if self._encoded else {"image"})
        decoders = {key: tfds.decode.SkipDecoding() for key in skipped}
        self._source = builder.as_data_source(split, decoders=decoders)

    def read(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """See images.ImageSource.read."""
        ids, rows = self._rows(indices)
        images = np.empty((len(ids), *self.image_shape), np.uint8)
        for k, row in enumerate(rows):
            images[k] = self._decode(row["image"], ids[k])
        return self._batch(ids, rows, images)

    def read_whole(self, indices: np.ndarray) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
        """See images.ImageSource.read_whole."""
        if not (self._encoded and self.resizes):
            batch = self.read(indices)
            return batch, list(batch["image"])
        ids, rows = self._rows(indices)
        shape, kept = self.image_shape, []
        images = np.empty((len(ids), *shape), np.uint8)
        for k, row in enumerate(rows):
            images[k], whole = self._naming(ids[k], decode_whole, row["image"], image_shape=shape)
            kept.append(whole)
        return self._batch(ids, rows, images), kept

    def _batch(self, ids: np.ndarray, rows: list[dict], images: np.ndarray) -> dict[str, Any]:
        labels = np.array([row["label"] for row in rows], np.int64)
        wrong = np.flatnonzero((labels < 0) | (labels >= self._num_classes))
        if wrong.size:
            message = (
                f"{self._place(ids[wrong[0]])} has label {labels[wrong[0]]}, but data.num_classes "
                f"is {self._num_classes}, which allows 0 to {self._num_classes - 1}"
            )
            raise DataError([message])
        return {"image": images, "label": labels.astype(np.int32), "id": ids}

    def _rows(self, indices: np.ndarray) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """(ids in the data set's own split, records) of examples."""
        ids = self._ids[within(indices, self.num_examples)]
        try:
            return ids, self._source.__getitems__(ids.tolist())
        except RuntimeError as error:
            raise DataError([self._damaged(ids)]) from error

    def _decode(self, image: Any, example: int) -> np.ndarray:
        shape, resize = self.image_shape, self.resizes
        if self._encoded:
            return self._naming(example, decode_image, image, image_shape=shape, resize=resize)
        if image.shape != shape:
            raise DataError([f"{self._place(example)} is {image.shape}, not {shape}"])
        return image

    def _naming(self, example: int, decode: Callable, *args: Any, **kwargs: Any) -> Any:
        try:  # its errors name the example's place
            return decode(*args, **kwargs)
        except (OSError, SyntaxError, ValueError) as error:  # SyntaxError: of a broken PNG
            raise DataError([f"{self._place(example)} cannot be read: {error}"]) from error

    def _place(self, example: int) -> str:
        """File and record of an example, for messages."""
        left = int(example)
        for file in self._files:
            if left < file.take:
                return f"record {file.skip + left} of {file.filename}"
            left -= file.take
        raise IndexError(f"example {example} is in none of {len(self._files)} files")

    def _damaged(self, ids: np.ndarray) -> str:
        for example in ids:
            try:
                self._source[int(example)]
            except RuntimeError as error:
                return f"{self._place(example)} is damaged ({error}). {_AGAIN}"
        return f"records {ids.min()} to {ids.max()} can be read one by one but not together"


def within(indices: np.ndarray, num_examples: int) -> np.ndarray:
    """Indices as they are; NumPy would take a negative one from the end.

    Raises:
      IndexError: one lies outside [0, num_examples).
    """
    indices = np.asarray(indices)
    if indices.size and (indices.min() < 0 or indices.max() >= num_examples):
        raise IndexError(
            f"indices {indices.min()} to {indices.max()} of a split of {num_examples} examples"
        )
    return indices
