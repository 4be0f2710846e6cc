"""The measures by name, and opening what they are asked about."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from etils import epath

from functa.data import crops as crops_lib
from functa.data import images as images_lib
from functa.evaluation.analysis import inner_steps, latent_space, storage
from functa.evaluation.analysis.table import Table
from functa.evaluation.analysis.trained_field import Subject
from functa.pipeline import load
from functa.runtime import config as config_lib
from functa.training.checkpoint import digest

# name -> the measure; {name of a table: the table}
MEASURES: dict[str, Callable[[Subject], dict[str, Table]]] = {
    "steps": inner_steps.steps,
    "free": inner_steps.free,
    "quantisation": storage.quantisation,
    "rate_distortion": storage.rate_distortion,
    "resolution": latent_space.resolution,
    "latents": latent_space.latents,
}
SPLITS = ("train", "validation", "test")
FEWEST_IMAGES = 2  # that have a neighbour and a midpoint


class Request(NamedTuple):
    """What a person asks for.

    run: directory with config.json and the stage meta_learn. measures: names of MEASURES. split:
    whose images; images: how many, None: `default_images` or all, if there are fewer. pictures: a
    folder, for the measure resolution alone. scales: times the training resolution. data_dir: where
    the data set lies, None: where the run has it.
    """

    run: epath.PathLike
    measures: Sequence[str]
    split: str
    images: int | None
    default_images: int
    pictures: epath.PathLike | None
    scales: Sequence[int]
    data_dir: epath.PathLike | None


def open_subject(request: Request, problems: Sequence[str]) -> tuple[Subject, str]:
    """Checks everything, compiles nothing.

    Args:
      problems: what else is known to be wrong, to be told with the rest.
    Returns:
      (subject, digest of the params).
    Raises:
      ValueError: all that is wrong with the request, one line each.
    """
    problems = [*problems, *check(request)]
    params, sources, count = None, None, request.images
    try:
        field, params = load.load_field(epath.Path(request.run))
    except (ValueError, OSError) as error:
        problems += str(error).splitlines()
    else:
        config = config_lib.load(request.run)
        if request.data_dir is not None:
            config.data.data_dir = str(request.data_dir)
        try:
            sources = images_lib.open_splits(**config.data)
        except ValueError as error:
            problems += str(error).splitlines()
    if sources is not None and request.split in sources:
        there = sources[request.split].num_examples
        count = min(request.default_images, there) if count is None else count
        if count > there:
            problems.append(f"--images={count}: the split {request.split} has {there} images")
        if there < FEWEST_IMAGES:
            problems.append(f"the split {request.split} has {there} image: too few to analyse")
    crops = {}
    if params is not None and "resolution" in request.measures and request.pictures is not None:
        h, w, c = field.image_shape
        scales = [scale for scale in request.scales if scale > 0]
        shapes = [(scale * h, scale * w) for scale in scales]
        wanted = request.default_images if count is None else max(1, count)
        try:
            found = crops_lib.read_crops(request.pictures, shapes=shapes, channels=c, count=wanted)
            crops = dict(zip(scales, found, strict=True))
        except (ValueError, OSError) as error:
            problems += str(error).splitlines()
    if problems:
        raise ValueError("\n".join(problems))
    assert sources is not None
    assert count is not None
    subject = Subject(config, params, sources, split=request.split, count=count, crops=crops)
    return subject, digest(params)


def check(request: Request) -> list[str]:
    """What is wrong with the words and numbers of a request, whatever lies on the disk."""
    problems = [
        f"unknown measure {name!r}: known are {', '.join(MEASURES)}"
        for name in request.measures
        if name not in MEASURES
    ]
    if not request.measures:
        problems.append(f"no measure named: known are {', '.join(MEASURES)}")
    if request.split not in SPLITS:
        problems.append(f"unknown split {request.split!r}: known are {', '.join(SPLITS)}")
    if request.images is not None and request.images < FEWEST_IMAGES:
        problems.append(f"--images={request.images} must be at least {FEWEST_IMAGES}")
    problems += [
        f"--scales: {scale} times the training resolution is not above it; from 2"
        for scale in request.scales
        if scale < 2
    ]
    if "resolution" in request.measures and request.pictures is None:
        problems.append("the measure resolution needs --pictures=FOLDER, larger pictures to cut up")
    if "resolution" not in request.measures and request.pictures is not None:
        problems.append("--pictures is for the measure resolution, which is not asked for")
    return problems
