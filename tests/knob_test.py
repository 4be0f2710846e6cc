"""Every leaf of the config changes a program, the data, the training loop or the report."""

import copy
import functools
from typing import Any, NamedTuple

import pytest
from ml_collections import ConfigDict

from functa.configs import cifar10_functa, cifar10_spatial, common, digits, imagenet, mnist
from functa.data import images
from functa.pipeline import validation
from functa.runtime import config as config_lib
from tests.support import knobs

EXPERIMENTS = (digits, mnist, cifar10_functa, cifar10_spatial, imagenet)

NEGATED = "negated"
BASES: dict[str, dict[str, Any]] = {
    "digits": {},
    "photos": {"data.source": "tfds"},
    "whole images": {"meta_learn.cells_per_image": 0},
    "resize": {"encode.crop": "resize"},
    "two blocks": {"classify.model.depth": 2},
    "mlp": {"classify.model": common.mlp(width=16, depth=1)},
    "convnext": {"classify.model": common.convnext(widths=(8, 16), depths=(1, 1))},
    "unet": {"generate.model": common.unet(widths=(8, 16), depths=(1, 1), heads=2)},
    "denoising mlp": {"generate.model": common.denoising_mlp(width=16, depth=1, mlp_width=32)},
}


FLOW = dict(name="flow", steps=4, sigma_max=80.0)
PCA = dict(name="pca", components=4)


class Knob(NamedTuple):
    """A change of a leaf in the config `base` that must change each of `probes` (knobs.Probes).

    Attributes:
      value: the new value; NEGATED inverts a bool.
      also: other changes that make the config valid.
    """

    value: Any
    probes: str
    base: str = "digits"
    also: dict[str, Any] = {}


def optimizer(stage: str, **values: Any) -> dict[str, Knob]:
    return {f"{stage}.optimizer.{key}": Knob(v, f"{stage}.optimizer") for key, v in values.items()}


KNOBS: dict[str, Knob] = {
    "name": Knob("another", "report"),
    "seed": Knob(1, "meta_learn.batches meta_learn.loop encode classify.batches classify.loop"),
    "stages": Knob(("meta_learn", "encode"), "stages"),
    "mesh.data": Knob(1, "meta_learn.step", also={"mesh.fsdp": -1}),
    "mesh.fsdp": Knob(2, "meta_learn.step"),
    "mesh.cell": Knob(2, "meta_learn.step", "whole images"),
    "data.source": Knob("tfds", "data"),
    "data.name": Knob("others", "data", "photos"),
    "data.data_dir": Knob("elsewhere", "data", "photos"),
    "data.image_shape": Knob((16, 8, 1), "data meta_learn.evaluate", "photos"),
    "data.num_classes": Knob(
        5, "classify.init classify.gradient", "photos", also={"data.name": "few"}
    ),
    "data.train_split": Knob("train[:80%]", "data", "photos"),
    "data.test_split": Knob("test[:50%]", "data", "photos"),
    "data.validation_examples": Knob(32, "data", "photos"),
    "data.max_examples": Knob(64, "data"),
    "data.cache": Knob("none", "data", "photos"),
    "field.latent_shape": Knob((2, 2, 4), "meta_learn.init meta_learn.evaluate"),
    "field.interpolation": Knob("bilinear", "meta_learn.evaluate", "whole images"),
    "field.coordinates": Knob("periodic", "meta_learn.evaluate"),
    "field.map": Knob("mlp", "meta_learn.init meta_learn.evaluate"),
    "field.upsampling": Knob(2, "meta_learn.init meta_learn.evaluate"),
    "field.modulation": Knob("shift_scale", "meta_learn.init meta_learn.evaluate"),
    "field.width": Knob(8, "meta_learn.init meta_learn.evaluate"),
    "field.depth": Knob(4, "meta_learn.init meta_learn.evaluate"),
    "field.w0": Knob(5.0, "meta_learn.init"),
    "inner_loop.steps": Knob(2, "meta_learn.gradient meta_learn.evaluate"),
    "inner_loop.lr_shape": Knob("scalar", "meta_learn.init meta_learn.evaluate"),
    "inner_loop.lr_per_step": Knob(NEGATED, "meta_learn.init meta_learn.evaluate"),
    "inner_loop.initial_lr": Knob(0.5, "meta_learn.init"),
    "inner_loop.min_lr": Knob(1e-2, "meta_learn.init meta_learn.optimizer"),
    "inner_loop.max_lr": Knob(1e2, "meta_learn.init meta_learn.optimizer"),
    "inner_loop.second_order": Knob(NEGATED, "meta_learn.gradient"),
    "inner_loop.chunks": Knob(2, "meta_learn.gradient meta_learn.evaluate", "whole images"),
    "meta_learn.batch_size": Knob(8, "meta_learn.batches"),
    "meta_learn.cells_per_image": Knob(2, "meta_learn.gradient"),
    "meta_learn.window": Knob(2, "meta_learn.gradient"),
    "meta_learn.micro_batches": Knob(2, "meta_learn.step"),
    "meta_learn.loss": Knob("mse", "meta_learn.gradient"),
    "meta_learn.flips": Knob(NEGATED, "meta_learn.gradient"),
    "meta_learn.steps": Knob(16, "meta_learn.loop meta_learn.optimizer"),
    **optimizer(
        "meta_learn", name="adamw", learning_rate=1e-3, schedule="constant", warmup_steps=3
    ),
    **optimizer("meta_learn", end_fraction=0.1, weight_decay=0.1, clip_norm=1.0),
    "meta_learn.ema_decay": Knob(0.5, "meta_learn.loop"),
    "meta_learn.eval_batch_size": Knob(32, "meta_learn.evaluate"),
    "meta_learn.log_every": Knob(5, "meta_learn.loop"),
    "meta_learn.eval_every": Knob(4, "meta_learn.loop"),
    "meta_learn.checkpoint_every": Knob(5, "meta_learn.loop"),
    "encode.batch_size": Knob(8, "encode"),
    "encode.dtype": Knob("float32", "encode"),
    "encode.compression": Knob("zstd", "encode"),
    "encode.shard_megabytes": Knob(0.008, "encode"),
    "encode.num_augmentations": Knob(3, "encode"),
    "encode.flip": Knob(NEGATED, "encode"),
    "encode.crop": Knob("resize", "encode"),
    "encode.crop_padding": Knob(2, "encode"),
    "encode.crop_min_area": Knob(0.9, "encode", "resize"),
    "classify.model.name": Knob("mlp", "classify.init classify.gradient", also=BASES["mlp"]),
    "classify.normalization": Knob("scalar", "classify.gradient classify.evaluate"),
    "classify.copies": Knob("first", "classify.batches"),
    "classify.augment.flip": Knob(NEGATED, "classify.gradient"),
    "classify.augment.crop": Knob(1, "classify.gradient"),
    "classify.augment.drop": Knob(0.1, "classify.gradient"),
    "classify.augment.noise": Knob(0.1, "classify.gradient"),
    "classify.mixup": Knob(0.2, "classify.gradient"),
    "classify.label_smoothing": Knob(0.0, "classify.gradient"),
    "classify.batch_size": Knob(8, "classify.batches"),
    "classify.micro_batches": Knob(2, "classify.step"),
    "classify.steps": Knob(16, "classify.loop classify.optimizer"),
    **optimizer("classify", name="lamb", learning_rate=1e-2, schedule="constant", warmup_steps=3),
    **optimizer("classify", end_fraction=0.1, weight_decay=0.1, clip_norm=1.0, layer_decay=0.5),
    "classify.ema_decay": Knob(0.5, "classify.loop"),
    "classify.cache": Knob("none", "classify.batches"),
    "classify.eval_batch_size": Knob(32, "classify.evaluate"),
    "classify.log_every": Knob(5, "classify.loop"),
    "classify.eval_every": Knob(4, "classify.loop"),
    "classify.checkpoint_every": Knob(5, "classify.loop"),
    "generate.model.name": Knob(
        "mlp", "generate.init generate.gradient", also=BASES["denoising mlp"]
    ),
    "generate.parameterization.name": Knob("flow", "generate.gradient generate.sample"),
    "generate.parameterization.prediction": Knob("x", "generate.gradient generate.sample"),
    "generate.parameterization.distribution": Knob("logistic", "generate.gradient"),
    "generate.parameterization.mean": Knob(0.0, "generate.gradient"),
    "generate.parameterization.std": Knob(1.0, "generate.gradient"),
    "generate.normalization": Knob("whitened", "generate.gradient generate.sample"),
    "generate.copies": Knob("all", "generate.batches"),
    "generate.label_dropout": Knob(0.2, "generate.gradient"),
    "generate.batch_size": Knob(8, "generate.batches"),
    "generate.micro_batches": Knob(2, "generate.step"),
    "generate.steps": Knob(16, "generate.loop generate.optimizer"),
    **optimizer("generate", name="lamb", learning_rate=1e-2, schedule="constant", warmup_steps=3),
    **optimizer("generate", end_fraction=0.1, weight_decay=0.1, clip_norm=1.0),
    "generate.ema_decay": Knob(0.5, "generate.loop"),
    "generate.cache": Knob("none", "generate.batches"),
    "generate.eval_batch_size": Knob(32, "generate.evaluate"),
    "generate.log_every": Knob(5, "generate.loop"),
    "generate.eval_every": Knob(4, "generate.loop"),
    "generate.checkpoint_every": Knob(5, "generate.loop"),
    "generate.schedule.name": Knob("flow", "generate.sample", also={"generate.schedule": FLOW}),
    "generate.schedule.steps": Knob(5, "generate.sample"),
    "generate.schedule.sigma_min": Knob(0.01, "generate.sample"),
    "generate.schedule.sigma_max": Knob(40.0, "generate.sample"),
    "generate.schedule.rho": Knob(3.0, "generate.sample"),
    "generate.solver.name": Knob("euler", "generate.sample"),
    "generate.guidance.scale": Knob(3.0, "generate.sample"),
    "generate.guidance.interval": Knob((0.1, 2.0), "generate.sample"),
    "generate.guidance_sweep": Knob((1.0, 4.0), "generate.judged"),
    "generate.samples": Knob(48, "generate.judged"),
    "generate.sample_batch_size": Knob(8, "generate.judged"),
    "generate.features.name": Knob("pca", "generate.judged", also={"generate.features": PCA}),
    "generate.features.steps": Knob(3, "generate.judged"),
    "generate.features.flip": Knob(NEGATED, "generate.judged"),
}


def model_knobs(base: str, *, stage: str = "classify", **values: Any) -> dict[str, Knob]:
    """Knobs of the model of a stage. Dropout, drop_path and remat affect training only."""
    return {
        f"{stage}.model.{key}": Knob(
            value,
            f"{stage}.gradient"
            + ("" if key.startswith(("drop", "remat")) else f" {stage}.evaluate"),
            base,
        )
        for key, value in values.items()
    }


LARGE = dict(remat=NEGATED, dtype="bfloat16")
MODELS = {
    "transformer": {
        **model_knobs("digits", width=8, depth=2, heads=4, mlp_width=16, dropout=0.3, patch=2),
        # Stochastic depth never drops the first of several blocks.
        **model_knobs("two blocks", drop_path=0.3),
        **model_knobs("digits", **LARGE),
    },
    "mlp": model_knobs("mlp", width=8, depth=2, dropout=0.3),
    "convnext": model_knobs(
        "convnext", widths=(8, 8), depths=(1, 2), drop_path=0.2, dropout=0.1, **LARGE
    ),
}
GENERATORS = {
    "dit": model_knobs(
        "digits", stage="generate", patch=2, width=8, depth=2, heads=4, mlp_width=16, **LARGE
    ),
    "unet": model_knobs("unet", stage="generate", widths=(16, 16), depths=(1, 2), heads=4, **LARGE),
    "mlp": model_knobs("denoising mlp", stage="generate", width=8, depth=2, mlp_width=16),
}
ROWS = [
    *KNOBS.items(),
    *(row for model in (*MODELS.values(), *GENERATORS.values()) for row in model.items()),
]


class Bench:
    """Configs on prepared images, and their probes. Probes of bases are computed once."""

    def __init__(self, root):
        self._root = knobs.prepare_images(root / "images")
        self.probe = knobs.Probes(root / "probes", self.config("digits"))
        self.of_base = functools.cache(lambda base, name: self.probe(name, self.config(base)))

    def config(self, base: str, **changes: Any) -> ConfigDict:
        config = digits.get_config("tiny")
        config.data.update(name="photos", data_dir="here")
        for leaf, value in copy.deepcopy(BASES[base] | changes).items():
            *path, key = leaf.split(".")
            section = functools.reduce(getattr, path, config)
            section[key] = not section[key] if value == NEGATED else value
        config.data.data_dir = str(self._root / config.data.data_dir)
        return config


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return Bench(tmp_path_factory.mktemp("knobs"))


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda module: module.__name__)
def test_every_leaf_of_every_experiment_has_a_knob(experiment):
    config = experiment.get_config("tiny")
    leaves = config_lib.flatten(config_lib.to_dict(config)).keys()
    models = MODELS[config.classify.model.name], GENERATORS[config.generate.model.name]
    assert leaves == KNOBS.keys() | models[0].keys() | models[1].keys()


@pytest.mark.parametrize(("leaf", "knob"), ROWS, ids=[f"{leaf}-{k.base}" for leaf, k in ROWS])
def test_leaf_changes_its_probes(bench, leaf, knob):
    changed = bench.config(knob.base, **knob.also, **{leaf: knob.value})
    splits = lambda: images.open_splits(**changed.data)  # noqa: E731
    assert validation.validate(changed, splits, stages=changed.stages) == []
    for name in knob.probes.split():
        assert bench.probe(name, changed) != bench.of_base(knob.base, name), f"no effect on {name}"


@pytest.mark.parametrize("name", knobs.Probes.names())
def test_unused_settings_change_no_probe(bench, name):
    """The digits have no directory and no cache, and crop=pad has no smallest area."""
    settings = {"data.data_dir": "elsewhere", "data.cache": "none", "encode.crop_min_area": 0.9}
    assert bench.probe(name, bench.config("digits", **settings)) == bench.of_base("digits", name)
