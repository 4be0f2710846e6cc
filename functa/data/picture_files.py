"""Picture files of any size, as a person has them: found in folders, read for a field."""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from functa.data import image_arrays
from functa.data.sources import Batch, check_indices
from functa.runtime import storage
from functa.runtime.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_MODES = {1: "L", 3: "RGB"}  # Pillow mode by number of channels


def find_pictures(paths: Sequence[str]) -> list[pathlib.Path]:
    """Lists picture files: the files of `paths`, and those in its folders, sorted by name.

    Raises:
      UserError: a path does not exist, or a folder has no pictures.
    """
    pictures: list[pathlib.Path] = []
    for path in map(pathlib.Path, paths):
        if not path.is_dir():
            if not path.is_file():
                raise UserError(f"{path} does not exist or is not a file")
            pictures.append(path)
            continue
        files = _pictures_in(path)
        if not files:
            raise UserError(f"{path} has no pictures ({', '.join(SUFFIXES)})")
        pictures += files
    return pictures


def find_classes(folder: str) -> tuple[list[pathlib.Path], np.ndarray, list[str]]:
    """Lists the pictures of a folder, or of its class folders FOLDER/CLASS/PICTURE.

    Returns:
      Files, their labels [n] int32 (-1 without class folders), and the sorted names of the classes.
    Raises:
      UserError: there are no pictures, or pictures beside class folders.
    """
    root = pathlib.Path(folder)
    if not root.is_dir():
        raise UserError(f"{root} is not a folder")
    loose = _pictures_in(root)
    folders = {path.name: _pictures_in(path) for path in sorted(root.iterdir()) if path.is_dir()}
    classes = {name: files for name, files in folders.items() if files}
    if loose and classes:
        raise UserError(
            f"{root} has pictures and folders of pictures ({', '.join(classes)}): move the pictures into "
            "class folders, or the folders elsewhere"
        )
    if not loose and not classes:
        raise UserError(f"{root} has no pictures ({', '.join(SUFFIXES)})")
    if loose:
        return loose, np.full(len(loose), -1, np.int32), []
    labels = np.repeat(np.arange(len(classes), dtype=np.int32), [len(f) for f in classes.values()])
    return [file for files in classes.values() for file in files], labels, list(classes)


def damaged(files: Sequence[pathlib.Path], *, channels: int) -> dict[pathlib.Path, str]:
    """Messages of the files that are not readable pictures; every file is decoded."""

    def message(file: pathlib.Path) -> str:
        try:
            _decode(file, channels=channels)
        except UserError as error:
            return str(error)
        return ""

    messages = zip(files, storage.thread_map(message, files), strict=True)
    return {file: text for file, text in messages if text}


def _pictures_in(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(
        file
        for file in folder.iterdir()
        if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")
    )


class PictureSource:
    """An images.ImageSource of picture files; see `read_picture` for the arguments."""

    def __init__(
        self,
        files: Sequence[pathlib.Path],
        labels: np.ndarray,
        *,
        image_shape: Sequence[int],
        resize: str,
    ):
        """labels: [n] int32, one for each file."""
        self.num_examples = len(files)
        self.image_shape = tuple(image_shape)
        self.files = list(files)
        self._labels, self._resize = labels, resize

    def read(self, indices: np.ndarray) -> Batch:
        """See images.ImageSource."""
        ids = check_indices(indices, self.num_examples)
        images = [
            read_picture(self.files[k], image_shape=self.image_shape, resize=self._resize)
            for k in ids
        ]
        shape = (len(ids), *self.image_shape)
        pixels = np.stack(images) if images else np.empty(shape, np.uint8)
        return {"image": pixels, "label": self._labels[ids], "id": ids}

    def read_originals(self, indices: np.ndarray) -> dict[str, Any]:
        """See images.ImageSource."""
        ids = check_indices(indices, self.num_examples)
        images = [_decode(self.files[k], channels=self.image_shape[2]) for k in ids]
        return {"image": images, "label": self._labels[ids], "id": ids}


def read_picture(path: pathlib.Path, *, image_shape: Sequence[int], resize: str) -> np.ndarray:
    """Reads a picture as an image [h, w, c] uint8.

    The EXIF orientation is applied. Gray becomes RGB or RGB gray (ITU-R 601) as c requires; palettes are
    looked up, transparent parts become white, and CMYK is converted. Of an animation, the first frame
    is read.

    Args:
      image_shape: (h, w, c), c 1 or 3.
      resize: "crop" or "stretch"; see image_arrays.to_batch.
    Raises:
      UserError: the file is not a picture that Pillow reads, or has more than 8 bits per channel.
    """
    h, w, c = image_shape
    return image_arrays.resize_image(_decode(path, channels=c), (h, w), resize)


def _decode(path: pathlib.Path, *, channels: int) -> np.ndarray:
    """[H, W, channels] uint8."""
    try:
        with Image.open(path) as picture:
            if picture.mode[0] in "IF":
                raise UserError(f"{path} has more than 8 bits per channel (mode {picture.mode})")
            pixels = ImageOps.exif_transpose(picture)
            if pixels.has_transparency_data:
                rgba = pixels.convert("RGBA")
                pixels = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
            pixels = pixels.convert(_MODES[channels])
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} is not a readable picture: {error}") from error
    return np.asarray(pixels).reshape(pixels.height, pixels.width, channels)
