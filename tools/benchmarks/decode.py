#!/usr/bin/env python3
"""Times decoders of JPEG photographs, and how threads and processes share the work.

    python -m tools.benchmarks.decode --source=photos                centre crops of 256x256, as training reads them
    python -m tools.benchmarks.decode --source=photos --size=64 --json

Each way decodes the same files, read beforehand, on one thread, and then crops and resizes them by
the same function (functa/data/records.py): pillow is what training does; draft lets libjpeg skip
frequencies where an image is at least twice as large as asked for (by 2, 4 or 8), draft2 only as
far as it stays twice as large. opencv, simplejpeg and turbojpeg are measured where they are
installed (opencv-python-headless, simplejpeg, PyTurboJPEG with a libturbojpeg, which TURBOJPEG may
name); none of them is needed for anything else. "opencv, area" resizes by OpenCV too. Seconds are
those of the processor, so rates are of a whole core, whatever else runs; medians of --repeats
turns, turn by turn, so that a noisy machine disturbs all alike.

`check` is what `functa prepare` does with each image, by one thread, and by a thread or a
process for each core, by the clock on the wall. `tiny` is pillow with images of 8x8 pixels, all but
no work: threads of one process, which run Python one at a time, cannot be faster than that however
many they are.

--json prints one object: of each way images_per_second, spread ((max - min) / median), and how it
differs from pillow: changed (part of the images in which a pixel does), mean_abs (levels of 255,
over all images) and psnr (dB, mean over the changed images; null if there are none); check, images
a second by one_thread, threads, processes; tiny, images a second; images, size, cores, mean_bytes,
versions.
"""

import argparse
import functools
import importlib
import importlib.metadata
import io
import json
import multiprocessing
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent import futures
from typing import Any

import numpy as np
from PIL import Image

from functa.data import image_records
from functa.data.prepare import photographs

_PACKAGES = ("pillow", "opencv-python-headless", "simplejpeg", "PyTurboJPEG")
Decode = Callable[[bytes], np.ndarray]


def positive(text: str) -> int:
    """For argparse; that of benchmark.py would import JAX."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return number


def _fit(pixels: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    return image_records.convert_image(Image.fromarray(pixels), image_shape=shape, resize=True)


def _drafted(encoded: bytes, shape: tuple[int, int, int], gap: int) -> np.ndarray:
    with image_records.open_image(encoded) as image:
        image.draft(None, (gap * shape[1], gap * shape[0]))
        image.load()
        return image_records.convert_image(image, image_shape=shape, resize=True)


def _area(cv2: Any, pixels: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Crop and resize by OpenCV, to whole pixels and by its antialiased filter."""
    h, w, _ = shape
    height, width, _ = pixels.shape
    scale = min(width / w, height / h)
    top, left = round((height - h * scale) / 2), round((width - w * scale) / 2)
    part = pixels[top : top + round(h * scale), left : left + round(w * scale)]
    return cv2.resize(part, (w, h), interpolation=cv2.INTER_AREA)


def ways(shape: tuple[int, int, int]) -> dict[str, Decode]:
    """Bytes -> pixels of `shape` by each decoder that is installed."""
    found: dict[str, Decode] = {
        "pillow": functools.partial(image_records.decode_image, image_shape=shape, resize=True),
        "draft": lambda encoded: _drafted(encoded, shape, 1),
        "draft2": lambda encoded: _drafted(encoded, shape, 2),
    }
    if cv2 := _module("cv2"):
        cv2.setNumThreads(1)
        flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        found["opencv"] = lambda encoded: _fit(
            cv2.imdecode(np.frombuffer(encoded, np.uint8), flags), shape
        )
        found["opencv, area"] = lambda encoded: _area(
            cv2, cv2.imdecode(np.frombuffer(encoded, np.uint8), flags), shape
        )
    if simplejpeg := _module("simplejpeg"):
        found["simplejpeg"] = lambda encoded: _fit(
            simplejpeg.decode_jpeg(encoded, colorspace="RGB"), shape
        )
        found["simplejpeg scaled"] = lambda encoded: _fit(
            simplejpeg.decode_jpeg(
                encoded, colorspace="RGB", min_height=shape[0], min_width=shape[1]
            ),
            shape,
        )
    if turbojpeg := _module("turbojpeg"):
        try:
            decoder = turbojpeg.TurboJPEG(os.environ.get("TURBOJPEG"))
        except (OSError, RuntimeError):  # the package is there, the library is not
            return found
        found["turbojpeg"] = lambda encoded: _fit(
            decoder.decode(encoded, pixel_format=turbojpeg.TJPF_RGB), shape
        )
    return found


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def measure(images: Sequence[bytes], size: int, repeats: int) -> dict[str, Any]:
    """Rates and differences of every way, as the module's docstring says."""
    decoders = ways((size, size, 3))
    reference = [decoders["pillow"](encoded) for encoded in images]
    seconds: dict[str, list[float]] = {name: [] for name in decoders}
    for _ in range(repeats):
        for name, decode in decoders.items():
            begin = time.process_time()
            for encoded in images:
                decode(encoded)
            seconds[name].append(time.process_time() - begin)
    result = {}
    for name, decode in decoders.items():
        pairs = zip(map(decode, images), reference, strict=True)
        errors = [one.astype(np.float64) - other for one, other in pairs]
        squares = np.array([np.square(error).mean() for error in errors])
        changed = squares[squares > 0]
        result[name] = {
            "images_per_second": len(images) / statistics.median(seconds[name]),
            "spread": (max(seconds[name]) - min(seconds[name])) / statistics.median(seconds[name]),
            "changed": len(changed) / len(images),
            "mean_abs": float(np.mean([np.abs(error).mean() for error in errors])),
            "psnr": float(np.mean(10 * np.log10(255**2 / changed))) if changed.size else None,
        }
    return result


def tiny(images: Sequence[bytes], repeats: int) -> float:
    """Images a second when their pixels cost nothing."""
    decode = ways((8, 8, 3))["pillow"]
    encoded = []
    for each in images:
        data = io.BytesIO()
        Image.open(io.BytesIO(each)).convert("RGB").resize((8, 8)).save(data, "JPEG")
        encoded.append(data.getvalue())
    seconds = []
    for _ in range(repeats):
        begin = time.process_time()
        for each in encoded:
            decode(each)
        seconds.append(time.process_time() - begin)
    return len(encoded) / statistics.median(seconds)


def check(photos: Sequence[photographs.Photo], cores: int, repeats: int) -> dict[str, float]:
    """Images a second that are read and decoded in full, by one thread, and on all cores."""
    one = functools.partial(photographs.read_photo, min_side=1)
    spawn = multiprocessing.get_context("spawn")
    rates = {}
    with (
        futures.ThreadPoolExecutor(1) as single,
        futures.ThreadPoolExecutor(cores) as threads,
        futures.ProcessPoolExecutor(cores, mp_context=spawn) as processes,
    ):
        pools = {"one_thread": single, "threads": threads, "processes": processes}
        seconds: dict[str, list[float]] = {name: [] for name in pools}
        for turn in range(repeats + 1):
            for name, pool in pools.items():
                begin = time.perf_counter()
                # Processes hand the bytes back, as the one that writes the shard needs them.
                for sample in pool.map(one, photos, chunksize=8):
                    if sample.damage:
                        raise ValueError(f"{sample.name}: {sample.damage}")
                if turn:  # the first starts them
                    seconds[name].append(time.perf_counter() - begin)
    for name, values in seconds.items():
        rates[name] = len(photos) / statistics.median(values)
    return rates


def _photos(source: str, count: int) -> list[photographs.Photo]:
    """The first `count` JPEG files below a folder, in the order of their names' ends."""
    found = [
        path for path in pathlib.Path(source).rglob("*") if path.suffix.lower() in (".jpg", ".jpeg")
    ]
    found = sorted(found, key=lambda path: (path.name, str(path)))[:count]
    if not found:
        raise ValueError(f"--source={source} holds no JPEG files")
    return [photographs.Photo("", "", str(p), str(p), None, p.stat().st_size) for p in found]


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", required=True, metavar="FOLDER", help="of JPEG files")
    parser.add_argument("--size", type=positive, default=256, help="pixels a side")
    parser.add_argument("--images", type=positive, default=200)
    parser.add_argument("--repeats", type=positive, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args(argv)
    try:
        photos = _photos(arguments.source, arguments.images)
    except ValueError as error:
        parser.error(str(error))
    encoded = [pathlib.Path(photo.file).read_bytes() for photo in photos]
    cores = len(os.sched_getaffinity(0))
    result: dict[str, Any] = {
        "ways": measure(encoded, arguments.size, arguments.repeats),
        "check": check(photos, cores, arguments.repeats),
        "tiny": tiny(encoded, arguments.repeats),
        "images": len(photos),
        "size": arguments.size,
        "cores": cores,
        "mean_bytes": sum(map(len, encoded)) / len(encoded),
        "versions": _versions(),
    }
    if arguments.json:
        print(json.dumps(result))
        return 0
    for name, one in result.pop("ways").items():
        psnr = f", {one['psnr']:.1f} dB in {one['changed']:.0%}" if one["changed"] else ""
        print(
            f"{name:<18}{one['images_per_second']:>7.0f} images/s   spread {one['spread']:.0%}   "
            f"mean difference {one['mean_abs']:.3f}{psnr}"
        )
    for name, rate in result.pop("check").items():
        print(f"check, {name:<11}{rate:>7.0f} images/s")
    print(f"tiny{result.pop('tiny'):>21.0f} images/s")
    print("  ".join(f"{name} {value}" for name, value in result.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
