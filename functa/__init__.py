"""Neural fields as data: encode images as latents of a shared network, and learn on the latents.

    import functa

    run = functa.load("runs/digits")
    latents = run.encode(run.images("test")[:16])
    images = run.decode(latents, size=(128, 128))

Functions:
    load     opens a trained run
    config   makes a config by its name
    train    runs the stages of a config
    psnr     peak signal-to-noise ratio of images
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    import numpy as np
    from ml_collections import ConfigDict

    from functa.pipeline.trained_run import TrainedRun

__version__ = "0.2.0"
__all__ = ["config", "load", "psnr", "train"]


# Imports are inside the functions: `import functa` must not import JAX, which reads its settings from
# the environment when it is imported.
def load(run: "str | os.PathLike", *, data_dir: "str | os.PathLike | None" = None) -> "TrainedRun":
    """Opens a trained run or a released model.

    Args:
      run: directory of a run, a local path or gs://; or the name of a released model: "digits",
        "mnist" or "cifar10_spatial".
      data_dir: directory of the run's data set, if it is not that of the config.
    Returns:
      A functa.pipeline.trained_run.TrainedRun.
    Raises:
      ValueError: there is no run, its stage meta_learn is not complete, or a file is damaged.
    """
    from functa.pipeline.trained_run import TrainedRun

    return TrainedRun(run, data_dir=data_dir)


def config(name: str, options: str | None = None) -> "ConfigDict":
    """Makes a config.

    Args:
      name: of a file in functa/configs, for example "digits", or the path of a config file.
      options: those of the file, joined by commas, for example "8x8x16,nearest,two_core".
    Raises:
      ValueError: an unknown name or option.
    """
    from functa.pipeline.config_files import load_config

    return load_config(f"{name}:{options}" if options else name)


def train(
    config: "ConfigDict", workdir: "str | os.PathLike", *, say: "Callable[[str], None]" = print
) -> "TrainedRun":
    """Runs the stages of a config, and writes the report.

    The same call resumes after an interruption. Complete stages are skipped.

    Args:
      workdir: directory of the run.
      say: prints a line of the log.
    Raises:
      ValueError: the config, the data or the directory must be changed; lists every problem.
      TypeError: `config` is not a ConfigDict.
    """
    from ml_collections import ConfigDict

    from functa.pipeline.run import Run
    from functa.pipeline.runner import run_stages
    from functa.report import metric_registry, report

    if not isinstance(config, ConfigDict):
        raise TypeError(f"config must be a ConfigDict, as functa.config makes it, not {config!r}")
    run_stages(Run(config, workdir, say, handle_signals=False))
    metric_registry.write_summary(workdir)
    report.write_report(workdir)
    return load(workdir)


def psnr(images: Any, references: Any) -> "np.ndarray":
    """Peak signal-to-noise ratio of images in dB, at most 100.

    Args:
      images, references: [n, h, w, c], or one image [h, w, c] with its channel axis; uint8 in [0, 255]
        or float in [0, 1].
    Returns:
      [n] float64, or a scalar for one image. The mean over the images of a data set is the PSNR that
      this project reports.
    Raises:
      TypeError: the dtype is neither uint8 nor floating.
      ValueError: the shapes differ, or values lie outside [0, 1].
    """
    import numpy as np

    from functa.data.image_arrays import to_unit_range
    from functa.fields.psnr import psnr_of_images

    return psnr_of_images(*(to_unit_range(np.asarray(a)) for a in (images, references)))
