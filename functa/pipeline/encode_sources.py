"""Encodes images that a run was not trained on, with its field, to a functaset of their own."""

import functools
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from etils import epath

from functa.data import image_records, picture_files
from functa.data import images as images_lib
from functa.data.functaset.format import MANIFEST
from functa.data.images import ImageSource
from functa.pipeline.encode import make_encoder
from functa.runtime import config as config_lib
from functa.runtime import digests, storage
from functa.runtime.compilation_cache import cache_directory
from functa.runtime.errors import UserError
from functa.training.checkpoint import digest
from functa.training.progress import ProgressBar

if TYPE_CHECKING:
    from functa.pipeline.trained_run import TrainedRun


def open_folder(
    run: "TrainedRun", folder: str, *, resize: str, say: Callable[[str], None]
) -> tuple[dict[str, ImageSource], dict[str, Any], list[str]]:
    """Opens a folder of pictures, or of class folders, as the train split.

    Damaged pictures are left out and reported.

    Args:
      resize: see image_arrays.to_batch.
      say: prints a line for each damaged picture.
    Returns:
      The splits, the keys of config.data that describe them, and the names of the classes.
    Raises:
      UserError: see picture_files.find_classes; or all pictures are damaged.
    """
    files, labels, class_names = picture_files.find_classes(folder)
    damaged = picture_files.damaged(files, channels=run.image_shape[2])
    for message in damaged.values():
        say(f"left out: {message}")
    if len(damaged) == len(files):
        raise UserError(f"{folder} has no readable picture")
    labels = labels[[file not in damaged for file in files]]
    files = [file for file in files if file not in damaged]
    source = functools.partial(
        picture_files.PictureSource, image_shape=run.image_shape, resize=resize
    )
    empty = source([], np.zeros(0, np.int32))
    splits: dict[str, ImageSource]
    splits = {"train": source(files, labels), "validation": empty, "test": empty}
    data = {"source": "pictures", "name": epath.Path(folder).resolve().name, "resize": resize}
    return splits, data | {"num_classes": len(class_names)}, class_names


def open_data_set(
    run: "TrainedRun", name: str, *, data_dir: str
) -> tuple[dict[str, ImageSource], dict[str, Any], list[str]]:
    """Opens the splits train and test of a TFDS data set; see `open_folder` for the result.

    Raises:
      DataError: there is no such data set, or its images have another shape than the run's.
    """
    label = image_records.open_builder(name, data_dir).info.features["label"]
    data: dict[str, Any] = {
        "source": "tfds",
        "name": name,
        "image_shape": run.image_shape,
        "num_classes": int(label.num_classes),
        "train_split": "train",
        "test_split": "test",
        "validation_examples": 0,
        "max_examples": 0,
    }
    splits = images_lib.open_splits(**data, data_dir=data_dir, cache="none")
    return splits, data, list(label.names)


def encode_sources(
    run: "TrainedRun",
    directory: epath.PathLike,
    *,
    splits: dict[str, ImageSource],
    data: dict[str, Any],
    class_names: Sequence[str],
    dtype: str,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Writes a functaset of images that are not augmented; the same call resumes.

    Args:
      directory: of the functaset.
      splits, data, class_names: of `open_folder` or `open_data_set`; `data` is recorded in the manifest.
      dtype: of the stored latents.
      say: prints the progress.
    Returns:
      The metrics of Encoder.encode.
    """
    values = config_lib.to_dict(run.config)
    settings = run.config.encode.copy_and_resolve_references()
    settings.update(num_augmentations=1, flip=False, crop="none", dtype=dtype)
    recorded = {key: values[key] for key in ("name", "seed", "field", "inner_loop")}
    encoder = make_encoder(
        settings,
        splits=splits,
        fit=functools.partial(jax.jit(run.fitter.encode), run.params),
        field_digest=digest(run.params),
        latent_shape=run.latent_shape,
        seed=run.config.seed,
        recorded=recorded | {"data": data, "encode": config_lib.to_dict(settings)},
        class_names=class_names,
    )
    return encoder.encode(
        directory,
        process_index=0,
        process_count=1,
        progress=ProgressBar(say, "encode"),
        stop=lambda: None,
    )


def cached_functaset(run: "TrainedRun", data_dir: str) -> epath.Path:
    """Encodes the data set of a run to a directory below XDG_CACHE_HOME, at the first call.

    Returns:
      The directory of the functaset.

    Raises:
      DataError: the data set is not there.
      ValueError: another program is making it.
    """
    splits = images_lib.open_splits(**{**run.config.data, "data_dir": data_dir, "cache": "none"})
    recorded = config_lib.to_dict(run.config)["data"]
    key = digests.json_digest([digest(run.params), str(epath.Path(data_dir).resolve())]).split(":")[
        1
    ]
    directory = cache_directory() / "functasets" / f"{run.config.name}-{key[:16]}"
    directory.mkdir(parents=True, exist_ok=True)
    if not (directory / MANIFEST).exists():
        with storage.locked(directory / ".lock"):
            encode_sources(
                run,
                directory,
                splits=splits,
                data={key: recorded[key] for key in recorded if key not in ("data_dir", "cache")},
                class_names=run.class_names,
                dtype="float16",
                say=functools.partial(print, file=sys.stderr, flush=True),
            )
    return epath.Path(directory)
