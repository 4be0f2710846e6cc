"""Keys of every config, with default values.

All defaults of functa are in this folder. An experiment starts from `base()` and sets what differs.
"""

import math
import re
from collections.abc import Sequence

from ml_collections import ConfigDict

# Keys of large models. remat: recompute blocks in the backward pass to save memory. dtype: of matrix
# products, float32 or bfloat16.
_LARGE = {"remat": False, "dtype": "float32"}
_INTERPOLATIONS = ("nearest", "bilinear")


def _intervals() -> dict:
    return dict(
        log_every=50,  # steps between two lines of the log
        eval_every=250,  # steps between two evaluations of the validation split
        checkpoint_every=250,  # steps between two checkpoints
    )


def _config(changes: dict, **values) -> ConfigDict:
    config = ConfigDict(values)
    config.update(changes)
    return config


def optimizer(name: str, learning_rate: float, **changes) -> ConfigDict:
    """Settings of functa/training/optimizers.py."""
    return _config(
        changes,
        name=name,  # adam, adamw, lamb, muon
        learning_rate=learning_rate,  # peak
        schedule="cosine",  # cosine, constant, exponential
        warmup_steps=50,  # steps of linear warm-up
        end_fraction=0.01,  # last learning rate / peak
        weight_decay=0.0,  # decoupled, of matrices
        clip_norm=0.0,  # maximum global norm of the gradient; 0: no clipping
    )


def base() -> ConfigDict:
    """All keys. Experiments set the name, the data and the sizes."""
    config = ConfigDict()
    config.name = ""  # of the run, and of its default directory
    config.seed = 0  # of all random numbers
    config.stages = ("meta_learn", "encode", "classify")  # in this order; also generate
    config.mesh = dict(  # sizes of the axes of the device mesh; -1: all remaining devices
        data=-1,  # shards batches
        fsdp=1,  # shards batches, and the state of downstream models
        cell=1,  # shards rows of cells of whole images in meta_learn, and images in encode
    )
    config.data = dict(
        source="tfds",  # tfds (a TFDS data set in ArrayRecord files), digits (of scikit-learn)
        name="",  # of the TFDS data set
        data_dir="data",  # folder that contains NAME/, a local or gs:// path
        image_shape=(32, 32, 3),  # height, width, channels
        num_classes=10,  # labels lie in [0, num_classes)
        train_split="train",  # TFDS split, such as train[:80%]
        test_split="test",  # TFDS split
        validation_examples=5000,  # the last examples of the train split
        max_examples=0,  # use only the first examples of each split; 0: all
        cache="host",  # host: decode once and keep in memory; none: decode at every read
    )
    config.field = dict(
        latent_shape=(8, 8, 16),  # rows and columns of cells, channels
        interpolation="nearest",  # of modulations: nearest, bilinear
        coordinates="local",  # input features: local, binary, global, periodic
        map="linear",  # latents to modulations: linear, conv3x3, mlp
        upsampling=1,  # sub-cells per side of a cell, each with its own modulations
        modulation="shift",  # shift, shift_scale
        width=64,  # units per hidden layer
        depth=6,  # linear layers, with the output layer
        w0=10.0,  # frequency scale of the sine layers, in radians
    )
    config.inner_loop = _inner_loop()
    config.meta_learn = _meta_learn()
    config.encode = _encode()
    config.classify = _classify()
    config.generate = _generate()
    return config


def _inner_loop() -> dict:
    return dict(
        steps=3,  # gradient steps on the latents
        lr_shape="channel",  # one learning rate per: scalar, channel, cell, full (every latent)
        lr_per_step=True,  # separate learning rates for each inner step
        # In units of 1 / curvature of the first step. Far below 1, since the curvature grows tenfold
        # when training starts (MNIST: 0.1 is 3 dB better than 0.3, and 1 collapses).
        initial_lr=0.1,
        min_lr=1e-3,  # limits of the inner learning rates
        max_lr=1e3,  # see min_lr
        second_order=True,  # False: ignore the derivative of the inner gradient
        # Parts in which the rows of cells are processed: less memory for about a third more time.
        # With coordinates=global the first step keeps its memory. Needs interpolation=nearest.
        chunks=1,
    )


def _meta_learn() -> dict:
    return dict(
        batch_size=128,  # images per step, over all devices
        cells_per_image=4,  # random cells of each image; 0: whole images
        window=1,  # side of the square windows of random cells, in cells
        micro_batches=1,  # parts of a device's batch, processed in turn to save memory
        loss="log_mse",  # log_mse, mse (as in the papers)
        flips=False,  # mirror training images at random
        steps=1000,  # training steps
        optimizer=optimizer("muon", 3e-2),
        ema_decay=0.0,  # decay of the moving average of parameters per step; 0: no average
        eval_batch_size=128,  # images per batch of an evaluation, over all devices
        **_intervals(),
    )


def _encode() -> dict:
    return dict(
        batch_size=128,  # images per device
        dtype="float16",  # of stored latents: float16, bfloat16, float32, int8
        compression="none",  # none, zstd (4 % smaller as float16, slower)
        # Size of a shard before compression, in 10^6 bytes. One process writes a shard, and a shard
        # that was interrupted is written again.
        shard_megabytes=200.0,
        num_augmentations=1,  # copies of a training image; the first is not augmented
        flip=False,  # mirror copies left-right with probability 1/2
        crop="none",  # none, pad (pad and crop back), resize (crop and resize)
        crop_padding=4,  # pixels, with crop=pad
        crop_min_area=0.5,  # smallest fraction of the area, with crop=resize
    )


def _classify() -> dict:
    return dict(
        model=transformer(),  # transformer, convnext or mlp
        normalization="channel",  # by statistics of the functaset: scalar, channel
        copies="all",  # augmented copies to train on: all, first (none)
        # Augmentation of normalized latents, drawn at every step. flip: mirror the grid left-right
        # with probability 1/2; crop: pad by this number of cells on every side and crop back; drop:
        # fraction of the cells set to zero; noise: standard deviation.
        augment=dict(flip=False, crop=0, drop=0.0, noise=0.0),
        mixup=0.0,  # parameter a of Beta(a, a); 0: off
        label_smoothing=0.1,  # probability that is spread over all classes
        batch_size=128,  # examples per step, over all devices
        micro_batches=1,  # parts of a device's batch, processed in turn to save memory
        steps=1000,  # training steps
        # layer_decay: learning rate of a block / that of the next block, for models with blocks.
        optimizer=optimizer("adamw", 1e-3, weight_decay=0.05, layer_decay=1.0),
        ema_decay=0.99,  # decay of the moving average of parameters per step
        cache="host",  # of the train split: host, none (read from disk), device (on every device)
        eval_batch_size=500,  # examples per batch of an evaluation, over all devices
        **_intervals(),
    )


def _generate() -> dict:
    return dict(
        model=dit(),  # dit, unet or denoising_mlp
        # Distribution of noise levels (normal of log sigma, or others) and prediction: edm, or a flow.
        parameterization=edm(),
        normalization="channel",  # scalar, channel, whitened
        copies="first",  # all, first (no augmented copies)
        label_dropout=0.1,  # fraction of labels hidden in training; 0: no guidance possible
        batch_size=128,  # examples per step, over all devices
        micro_batches=1,  # parts of a device's batch, processed in turn to save memory
        steps=1000,  # training steps
        optimizer=optimizer("muon", 3e-2),
        ema_decay=0.9999,  # reached after about 90,000 steps: functa/training/train_step.py
        cache="host",  # host, none, device
        eval_batch_size=500,  # examples per batch of an evaluation, over all devices
        **_intervals(),
        schedule=karras(),  # noise levels of the sampler
        solver=dict(name="heun"),  # euler, heun, dpmpp_2m, stochastic
        # scale 1: no guidance; 0: unconditional. interval: of noise levels where guidance acts.
        guidance=dict(scale=1.0, interval=(0.0, 1e6)),
        guidance_sweep=(1.0, 1.5, 2.0, 3.0),  # scales compared in the report
        samples=1000,  # number to evaluate, at most the number of test images
        sample_batch_size=100,  # per device
        # Features of the Frechet distance: cnn (trained on the labels for `steps` steps, with
        # mirrored images if flip) or pca.
        features=dict(name="cnn", steps=1000, flip=False),
    )


def dit(**changes) -> ConfigDict:
    """Diffusion transformer over patches of patch x patch cells."""
    return _config(
        changes, name="dit", patch=1, width=128, depth=4, heads=4, mlp_width=512, **_LARGE
    )


def unet(**changes) -> ConfigDict:
    """Convolutional denoiser; one entry of widths and depths per resolution."""
    return _config(changes, name="unet", widths=(64, 128), depths=(2, 2), heads=4, **_LARGE)


def denoising_mlp(**changes) -> ConfigDict:
    """Residual MLP on the flattened latents, a denoiser for one or a few cells."""
    return _config(changes, name="mlp", width=512, depth=4, mlp_width=1024)


def edm(**changes) -> ConfigDict:
    """Noise levels and prediction of Karras et al. 2022."""
    return _config(changes, name="edm", prediction="edm", distribution="normal", mean=-1.2, std=1.2)


def karras(**changes) -> ConfigDict:
    """Sampling steps of Karras et al. 2022."""
    return _config(changes, name="karras", steps=18, sigma_min=0.002, sigma_max=80.0, rho=7.0)


def transformer(**changes) -> ConfigDict:
    """Pre-LN transformer with a CLS token, over patches of patch x patch cells."""
    sizes = dict(patch=1, width=128, depth=4, heads=4, mlp_width=256)
    return _config(changes, name="transformer", **sizes, **_LARGE, drop_path=0.0, dropout=0.1)


def mlp(**changes) -> ConfigDict:
    """Residual MLP on the flattened latents, a classifier."""
    return _config(changes, name="mlp", width=512, depth=2, dropout=0.2)


def convnext(**changes) -> ConfigDict:
    """ConvNeXt-style classifier of the latent grid; one entry of widths and depths per resolution."""
    sizes = dict(widths=(64, 128), depths=(2, 2))
    return _config(changes, name="convnext", **sizes, drop_path=0.1, dropout=0.0, **_LARGE)


def use_bilinear(config: ConfigDict) -> None:
    """Bilinear interpolation on whole images; periodic coordinates are continuous across cells."""
    config.field.update(interpolation="bilinear", coordinates="periodic")
    config.meta_learn.update(cells_per_image=0, batch_size=8)


def use_large_generator(config: ConfigDict) -> None:
    """A generator for accelerators, evaluated on 10,000 test images."""
    config.generate.update(batch_size=256, eval_every=5000, checkpoint_every=1000, samples=10_000)
    config.generate.guidance.scale = 1.5
    config.generate.features.update(steps=3000, flip=True)
    config.stages = (*config.stages, "generate")


def use_tiny(config: ConfigDict) -> None:
    """Every stage in seconds, for tests."""
    config.data.update(max_examples=96, validation_examples=40)
    config.field.update(width=16, depth=3)
    training = dict(
        batch_size=16, steps=12, eval_batch_size=16, log_every=4, eval_every=6, checkpoint_every=3
    )
    for stage in (config.meta_learn, config.classify, config.generate):
        stage.update(training)
        stage.optimizer.warmup_steps = 2
    config.encode.update(batch_size=16, num_augmentations=2)
    record_bytes = 100 + 2 * math.prod(config.field.latent_shape)  # as float16
    config.encode.shard_megabytes = 40e-6 * record_bytes
    _shrink(config.classify.model)
    _shrink(config.generate.model)
    config.generate.update(samples=64, sample_batch_size=16, guidance_sweep=(1.0, 2.0))
    config.generate.schedule.steps = 4
    config.generate.features.steps = 5


def _shrink(model: ConfigDict) -> None:
    if model.name == "convnext":
        model.update(widths=(8, 16), depths=(1, 1))
    elif model.name == "unet":
        levels = len(model.widths)
        model.update(widths=(8,) * levels, depths=(1,) * levels, heads=2)
    elif model.name in ("transformer", "dit"):
        model.update(width=16, depth=1, heads=2, mlp_width=32)
    else:
        sizes = dict(width=32, depth=1, mlp_width=32)
        model.update({key: value for key, value in sizes.items() if key in model})


def run_name(name: str, options: str | None) -> str:
    """digits, or cifar10_spatial-8x8x16-two_core: the default run directory below runs/."""
    return "-".join([name, *filter(None, (options or "").split(","))])


def parse_options(options: str | None, *, latent_shapes: Sequence[str], presets: Sequence[str]):
    """Parses the words after the colon of --config=NAME.py:8x8x16,nearest,two_core, in any order.

    Any latent shape is accepted; `latent_shapes` are suggestions for messages.

    Returns:
      (latent_shape, interpolation, preset); each is a string or None.
    Raises:
      ValueError: a word is unknown, or two words are of one kind.
    """
    known = {"latent shape": latent_shapes, "interpolation": _INTERPOLATIONS, "preset": presets}
    found: dict[str, str] = {}
    for word in filter(None, (options or "").split(",")):
        kind = next((kind for kind, words in known.items() if word in words), None)
        if re.fullmatch(r"\d+x\d+x\d+", word):
            kind = "latent shape"
        if kind is None:
            choices = "; ".join(f"{kind}: {', '.join(words)}" for kind, words in known.items())
            raise ValueError(f"unknown option {word!r} after the colon; choose from {choices}")
        if kind in found:
            raise ValueError(f"two options for the {kind}: {found[kind]!r} and {word!r}")
        found[kind] = word
    return found.get("latent shape"), found.get("interpolation"), found.get("preset")


def shape(text: str) -> tuple[int, ...]:
    """`8x8x16` -> (8, 8, 16)."""
    return tuple(int(part) for part in text.split("x"))
