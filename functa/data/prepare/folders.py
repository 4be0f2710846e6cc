"""Lists photographs in class folders, as ImageNet is unpacked."""

import os
from collections.abc import Iterator

from etils import epath

from functa.data.prepare import photographs, sources
from functa.runtime import storage


def listing(root: epath.Path, report: sources.Report) -> list[photographs.Photo]:
    """ROOT/train/CLASS/IMAGE and ROOT/test/... or val/..., or ROOT/CLASS/IMAGE of no split.

    A class folder without an image is reported as damage.
    """
    inside = {path.name: path for path in sorted(root.iterdir()) if path.is_dir()}
    splits = {name: path for name, path in inside.items() if name in photographs.SPLITS}
    photos: list[photographs.Photo] = []
    for name, folder in (splits if "train" in splits else {"": root}).items():
        split = photographs.SPLITS.get(name, "")
        classes = sorted(path for path in folder.iterdir() if path.is_dir())
        if name and not classes:
            report.found(name, "no class folders in it; not read")
        for path in classes:
            shown = f"{name}/{path.name}".lstrip("/")
            files = dict(_files(path))
            named = {
                each: size
                for each, size in files.items()
                if size is not None and photographs.NAME.fullmatch(each)
            }
            photographs.tell(shown, len(named), sorted(set(files) - set(named)), report)
            photos += [
                photographs.Photo(split, path.name, f"{shown}/{each}", f"{path}/{each}", None, size)
                for each, size in named.items()
            ]
    loose = [path.name for path in root.iterdir() if photographs.NAME.fullmatch(path.name)]
    if loose and not photos:
        raise ValueError(
            f"images as {loose[0]} lie in {root} itself: put each into the folder of its class, {root}/CLASS/IMAGE"
        )
    return photos


def _files(folder: epath.Path) -> Iterator[tuple[str, int | None]]:
    """Names and sizes in bytes of all that lies in a folder: None of a folder, 0 of a link to
    nowhere."""
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
