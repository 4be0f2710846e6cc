"""Writes a trained run as a model: see functa.pipeline.released for the files."""

from typing import Any

from etils import epath

from functa.data.functaset import format
from functa.pipeline import load, released
from functa.pipeline.trained_run import TrainedRun
from functa.runtime import config as config_lib
from functa.runtime import mesh, storage
from functa.runtime.errors import UserError


def write_model(run: TrainedRun, out: epath.PathLike, *, card: str) -> None:
    """Writes the field of a run, and its classifier and its generator if they are complete.

    Args:
      out: local directory, which is made.
      card: text of README.md.
    Raises:
      ValueError: the run is a model; a stage is damaged, or the stage encode is not complete; a stage
        has the normalization "whitened", which needs the training latents; or `out` is in an object
        store.
    """
    out = epath.Path(out)
    if released.is_model(run.workdir):
        raise UserError(f"{run.workdir} is a model already: copy the directory")
    if storage.is_remote(out):
        raise UserError(f"{out} must be a local directory")
    arrays = _arrays(run)
    config = config_lib.to_dict(run.config)
    config["data"]["data_dir"] = "data"
    for name, tree in arrays.items():
        released.write_arrays(out, name, mesh.to_host(tree))
    for stage, metrics in run.metrics.items():
        (out / stage).mkdir(parents=True, exist_ok=True)
        config_lib.write_json(out / stage / "metrics.json", metrics)
    (out / "functaset").mkdir()
    (run.workdir / "functaset" / format.MANIFEST).copy(out / "functaset" / format.MANIFEST)
    environment = config_lib.read_json(run.workdir / "environment.json")
    del environment["platform"]  # of the machine, of no use to others
    config_lib.write_json(out / "environment.json", environment)
    config_lib.write_json(out / "config.json", config)
    (out / "README.md").write_text(card)
    released.write_description(out)


def _arrays(run: TrainedRun) -> dict[str, Any]:
    """{file: pytree} of the complete stages."""
    functaset = load.load_functaset(run.workdir, run.params)
    arrays: dict[str, Any] = {"meta_learn/field.npz": run.params}
    for stage in ("classify", "generate"):
        if stage in run.metrics and run.config[stage].normalization == "whitened":
            raise UserError(
                f"a model cannot have {stage}.normalization=whitened, which needs the training latents"
            )
    if "classify" in run.metrics:
        arrays["classify/best.npz"] = load.load_classifier_params(functaset, run.workdir)[1]
    if "generate" in run.metrics:
        arrays["generate/best.npz"] = run.generator.params
        if run.generator.generator.label_dropout:  # without it there is no inpainting
            arrays["generate/denoising_error.npz"] = [run.generator.denoising_error]
    return arrays
