"""Lists photographs in class folders, the layout of an unpacked ImageNet."""

from etils import epath

from functa.data.image_records import IMAGE_NAME
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
            files = list(path.iterdir())
            images = sorted(file for file in files if IMAGE_NAME.fullmatch(file.name))
            sizes = storage.thread_map(_num_bytes, images)
            found = [
                Photo(split, path.name, f"{place}/{file.name}", str(file), None, size)
                for file, size in zip(images, sizes, strict=True)
                if size is not None
            ]
            photographs.report_class(place, len(found), len(files) - len(found), report)
            photos += found
    images_in_root = [p.name for p in root.iterdir() if IMAGE_NAME.fullmatch(p.name)]
    if images_in_root and not photos:
        raise UserError(
            f"{root} holds images such as {images_in_root[0]}, but no class folders: move every"
            f" image into the folder of its class, {root}/CLASS/IMAGE"
        )
    return photos


def _num_bytes(file: epath.Path) -> int | None:
    """Size of a file: None for a folder, 0 for a broken link."""
    try:
        stat = file.stat()
    except FileNotFoundError:
        return 0
    return None if stat.is_directory else stat.length
