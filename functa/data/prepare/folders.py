"""Lists photographs in class folders, the layout of an unpacked ImageNet."""

import os
from collections.abc import Iterator

from etils import epath

from functa.data.prepare import photographs
from functa.data.prepare.photographs import Photo
from functa.data.prepare.sources import Report
from functa.runtime import storage
from functa.runtime.errors import UserError


def list_photos(root: epath.Path, report: Report) -> list[Photo]:
    """Photographs at ROOT/train/CLASS/IMAGE and ROOT/test/... or val/..., or at ROOT/CLASS/IMAGE.

    A class folder without images is a problem of the source.
    """
    folders = {path.name: path for path in sorted(root.iterdir()) if path.is_dir()}
    splits = {name: path for name, path in folders.items() if name in photographs.SPLITS}
    photos: list[Photo] = []
    for name, folder in (splits if "train" in splits else {"": root}).items():
        split = photographs.SPLITS.get(name, "")
        classes = sorted(path for path in folder.iterdir() if path.is_dir())
        if name and not classes:
            report.info(name, "has no class folders; not read")
        for path in classes:
            place = f"{name}/{path.name}".lstrip("/")
            files = dict(_files(path))
            images = {
                file: size
                for file, size in files.items()
                if size is not None and photographs.NAME.fullmatch(file)
            }
            photographs.report_class(place, len(images), len(files) - len(images), report)
            photos += [
                Photo(split, path.name, f"{place}/{file}", f"{path}/{file}", None, size)
                for file, size in images.items()
            ]
    images_in_root = [p.name for p in root.iterdir() if photographs.NAME.fullmatch(p.name)]
    if images_in_root and not photos:
        raise UserError(
            f"{root} holds images such as {images_in_root[0]}, but no class folders: move every"
            f" image into the folder of its class, {root}/CLASS/IMAGE"
        )
    return photos


def _files(folder: epath.Path) -> Iterator[tuple[str, int | None]]:
    """Name and size in bytes of every entry: None for a folder, 0 for a broken link."""
    if not storage.is_remote(folder):
        with os.scandir(folder) as entries:
            for entry in entries:
                try:
                    yield entry.name, None if entry.is_dir() else entry.stat().st_size
                except FileNotFoundError:
                    yield entry.name, 0
        return
    paths = list(folder.iterdir())
    for path, stat in zip(paths, storage.thread_map(epath.Path.stat, paths), strict=True):
        yield path.name, None if stat.is_directory else stat.length
