"""The keys every experiment has, with the values most of them share.

Every default of the software is in this folder; the code itself has none. An experiment starts from
`base()` and changes what differs. `parse_options` reads the words after the colon of
`--config=configs/NAME.py:8x8x16,nearest,two_core`.
"""

import math
import re
from collections.abc import Iterable

from ml_collections import ConfigDict

# Keys of models that may be large. remat: compute blocks again on the way back, in less memory; dtype of matrix
# products: float32, bfloat16.
LARGE = {"remat": False, "dtype": "float32"}


def optimizer(name: str, learning_rate: float, **changes) -> ConfigDict:
    """Settings of an optimizer; see functa/training/optimizers.py."""
    config = ConfigDict()
    config.name = name  # adam, adamw, lamb, muon
    config.learning_rate = learning_rate
    config.schedule = "cosine"  # cosine, constant, exponential
    config.warmup_steps = 50
    config.end_fraction = 0.01  # last learning rate as a fraction of the peak
    config.weight_decay = 0.0
    config.clip_norm = 0.0  # largest global norm of the gradient; 0: no clipping
    config.update(changes)
    return config


def base() -> ConfigDict:
    """All keys but the name, the data and the sizes, which each experiment sets."""
    config = ConfigDict()
    config.name = ""
    config.seed = 0
    config.stages = ("meta_learn", "encode", "classify")

    # How devices share the work: sizes of the axes of one mesh, -1 for the rest.
    config.mesh = ConfigDict()
    config.mesh.data = -1  # batches
    config.mesh.fsdp = 1  # batches too, and parameters and optimiser of downstream models
    config.mesh.cell = 1  # meta_learn on whole images: rows of cells of an image; encoding: images

    config.data = ConfigDict()
    config.data.source = "tfds"  # digits (embedded) or tfds (a TFDS data set in ArrayRecord form)
    config.data.name = ""  # name of the TFDS data set
    config.data.data_dir = "data"  # the folder that holds NAME/..., a local or gs:// path
    config.data.image_shape = (32, 32, 3)  # h, w, c
    config.data.num_classes = 10
    config.data.train_split = "train"
    config.data.test_split = "test"
    config.data.validation_examples = 5000  # the last ones of the train split
    config.data.max_examples = 0  # only the first so many of every split; 0: all
    config.data.cache = "host"  # host: decoded once into memory; none: decoded whenever read

    config.field = ConfigDict()
    config.field.latent_shape = (8, 8, 16)  # i, j, d
    config.field.interpolation = "nearest"  # nearest, bilinear
    config.field.coordinates = "local"  # local, binary, global, periodic
    config.field.map = "linear"  # linear, conv3x3, mlp
    # Each cell is cut into so many by so many sub-cells with modulations of their own; 1: not cut.
    config.field.upsampling = 1
    config.field.modulation = "shift"  # shift, shift_scale
    config.field.width = 64
    config.field.depth = 6  # linear layers, the output layer included
    config.field.w0 = 10.0

    config.inner_loop = ConfigDict()
    config.inner_loop.steps = 3
    config.inner_loop.lr_shape = "channel"  # scalar, channel, cell, full
    config.inner_loop.lr_per_step = True
    # In units of 1 / curvature of the first step. Far below 1 because the output layer, and with
    # it the curvature, grows tenfold at first: MNIST collapsed with 1 and gained 3 dB over 0.3
    # with 0.1.
    config.inner_loop.initial_lr = 0.1
    config.inner_loop.min_lr = 1e-3
    config.inner_loop.max_lr = 1e3
    config.inner_loop.second_order = True
    # Parts that the rows of cells of an image are worked on in, one after the other: memory of one
    # part for a third more time, but for what coordinates=global keep of the first step. Nearest lookup only.
    config.inner_loop.chunks = 1

    config.meta_learn = ConfigDict()
    config.meta_learn.batch_size = 128  # images a step, over all devices
    config.meta_learn.cells_per_image = 4  # random cells of each image; 0: whole images
    # They come in squares of so many cells a side, which the maps and lookups that look at neighbours want.
    config.meta_learn.window = 1
    config.meta_learn.micro_batches = 1  # parts of a device's batch, in turn, for less memory
    config.meta_learn.loss = "log_mse"  # log_mse, mse (the papers')
    config.meta_learn.flips = False  # mirror what is trained on at random, for small data sets
    config.meta_learn.steps = 1000
    config.meta_learn.optimizer = optimizer("muon", 3e-2)
    config.meta_learn.ema_decay = 0.0  # 0: no moving average
    config.meta_learn.eval_batch_size = 128
    config.meta_learn.log_every = 50
    config.meta_learn.eval_every = 250
    config.meta_learn.checkpoint_every = 250

    config.encode = ConfigDict()
    config.encode.batch_size = 128  # images a device at a time
    config.encode.dtype = "float16"  # float16, bfloat16, float32, int8
    config.encode.compression = "none"  # none, zstd (4 % smaller as float16, slower)
    # Million bytes of a shard before compression, at least one record. What a killed process has begun is made
    # again, and each shard is made by one process: small sets on many processes want it small.
    config.encode.shard_megabytes = 200.0
    config.encode.num_augmentations = 1  # copies of a training image; the first is the image itself
    config.encode.flip = False  # left-right, with probability one half
    config.encode.crop = "none"  # none, pad (and crop back), resize (a crop to full size)
    config.encode.crop_padding = 4  # pixels; crop=pad
    config.encode.crop_min_area = 0.5  # smallest crop as a fraction of the area; crop=resize

    config.classify = ConfigDict()
    config.classify.model = transformer()
    config.classify.normalization = "channel"  # scalar, channel: of the functaset's statistics
    config.classify.copies = "all"  # of training images that encode has augmented; first: none
    # Changes of normalised latents, drawn anew at every step.
    config.classify.augment = ConfigDict()
    config.classify.augment.flip = False  # mirror the grid left-right, with probability one half
    config.classify.augment.crop = 0  # cells; pad the grid by so many on every side and crop back
    config.classify.augment.drop = 0.0  # part of the cells that become zeros
    config.classify.augment.noise = 0.0  # standard deviation
    config.classify.mixup = 0.0  # Beta(a, a) parameter; 0: off
    config.classify.label_smoothing = 0.1
    config.classify.batch_size = 128
    config.classify.micro_batches = 1
    config.classify.steps = 1000
    config.classify.optimizer = optimizer("adamw", 1e-3, weight_decay=0.05)
    # Learning rate of a block as a part of that of the next one; 1: one for all. For models with blocks.
    config.classify.optimizer.layer_decay = 1.0
    config.classify.ema_decay = 0.99
    config.classify.cache = "host"  # host, none, device: the whole split on every device
    config.classify.eval_batch_size = 500
    config.classify.log_every = 50
    config.classify.eval_every = 250
    config.classify.checkpoint_every = 250

    config.generate = ConfigDict()
    config.generate.model = dit()
    config.generate.parameterization = edm()
    config.generate.normalization = "channel"  # scalar, channel, whitened
    config.generate.copies = "first"  # first: no augmented copies; all
    config.generate.label_dropout = 0.1  # part of the labels that are hidden; 0: no guidance
    config.generate.batch_size = 128
    config.generate.micro_batches = 1
    config.generate.steps = 1000
    config.generate.optimizer = optimizer("muon", 3e-2)
    # Up to 90,000 steps the average is a power function of the step: functa/training/train_step.py.
    config.generate.ema_decay = 0.9999
    config.generate.cache = "host"  # host, none, device: the whole split on every device
    config.generate.eval_batch_size = 500
    config.generate.log_every = 50
    config.generate.eval_every = 250
    config.generate.checkpoint_every = 250
    config.generate.schedule = karras()
    config.generate.solver = ConfigDict(dict(name="heun"))  # euler, heun, dpmpp_2m, stochastic
    config.generate.guidance = ConfigDict()
    config.generate.guidance.scale = 1.0  # 1: none; 0: of any class
    config.generate.guidance.interval = (0.0, 1e6)  # of sigma, where it acts
    config.generate.guidance_sweep = (
        1.0,
        1.5,
        2.0,
        3.0,
    )  # guidance scales that the report compares
    config.generate.samples = 1000  # that are judged; no more than test images
    config.generate.sample_batch_size = 100  # samples a device at a time
    # Features in which sets of images are compared: cnn (a network trained on the labels) or pca.
    config.generate.features = ConfigDict(dict(name="cnn", steps=1000, flip=False))
    return config


def dit(**changes) -> ConfigDict:
    """Diffusion transformer over patches of patch x patch cells."""
    config = ConfigDict(dict(name="dit", patch=1, width=128, depth=4, heads=4, mlp_width=512))
    config.update(LARGE, **changes)
    return config


def unet(**changes) -> ConfigDict:
    """Small convolutional denoiser; one entry of widths and depths a resolution."""
    config = ConfigDict(dict(name="unet", widths=(64, 128), depths=(2, 2), heads=4))
    config.update(LARGE, **changes)
    return config


def denoising_mlp(**changes) -> ConfigDict:
    """Residual MLP on the flattened latents, for grids of one cell or of few."""
    config = ConfigDict(dict(name="mlp", width=512, depth=4, mlp_width=1024))
    config.update(changes)
    return config


def edm(**changes) -> ConfigDict:
    """Noise levels and prediction of Karras et al. 2022."""
    config = ConfigDict(
        dict(name="edm", prediction="edm", distribution="normal", mean=-1.2, std=1.2)
    )
    config.update(changes)
    return config


def karras(**changes) -> ConfigDict:
    """Sampling steps of Karras et al. 2022."""
    config = ConfigDict(dict(name="karras", steps=18, sigma_min=0.002, sigma_max=80.0, rho=7.0))
    config.update(changes)
    return config


def transformer(**changes) -> ConfigDict:
    """Pre-LN transformer with a CLS token, over patches of patch x patch cells."""
    config = ConfigDict(
        dict(name="transformer", patch=1, width=128, depth=4, heads=4, mlp_width=256)
    )
    config.update(LARGE, drop_path=0.0, dropout=0.1)
    config.update(changes)
    return config


def mlp(**changes) -> ConfigDict:
    """Residual MLP on the flattened latents."""
    config = ConfigDict(dict(name="mlp", width=512, depth=2, dropout=0.2))
    config.update(changes)
    return config


def convnext(**changes) -> ConfigDict:
    """Small ConvNeXt-style network on the latent grid; one entry of widths and depths a resolution."""
    config = ConfigDict(
        dict(name="convnext", widths=(64, 128), depths=(2, 2), drop_path=0.1, dropout=0.0)
    )
    config.update(LARGE, **changes)
    return config


def use_bilinear(config: ConfigDict) -> None:
    """Bilinear lookup with coords that are continuous across cells, on whole images: a pixel sees
    four cells, or sub-cells of them."""
    config.field.interpolation = "bilinear"
    config.field.coordinates = "periodic"
    config.meta_learn.cells_per_image = 0
    config.meta_learn.batch_size = 8


def use_large_generator(config: ConfigDict) -> None:
    """A generator of photographs, trained on accelerators and judged by all of 10,000 test images."""
    config.generate.batch_size = 256
    config.generate.eval_every = 5000
    config.generate.checkpoint_every = 1000
    config.generate.guidance.scale = 1.5
    config.generate.samples = 10_000
    config.generate.features.update(steps=3000, flip=True)
    config.stages = (*config.stages, "generate")


def use_tiny(config: ConfigDict) -> None:
    """Every stage in seconds: too small to learn much, large enough to run every line."""
    config.data.max_examples = 96
    config.data.validation_examples = 40
    config.field.width = 16
    config.field.depth = 3
    config.meta_learn.update(
        batch_size=16, steps=12, eval_batch_size=16, log_every=4, eval_every=6, checkpoint_every=3
    )
    config.meta_learn.optimizer.warmup_steps = 2
    config.encode.update(batch_size=16, num_augmentations=2)
    # 40 records, as float16.
    config.encode.shard_megabytes = 40e-6 * (100 + 2 * math.prod(config.field.latent_shape))
    if config.classify.model.name == "transformer":
        config.classify.model.update(width=16, depth=1, heads=2, mlp_width=32)
    elif config.classify.model.name == "convnext":
        config.classify.model.update(widths=(8, 16), depths=(1, 1))
    else:
        config.classify.model.update(width=32, depth=1)
    config.classify.update(
        batch_size=16, steps=12, eval_batch_size=16, log_every=4, eval_every=6, checkpoint_every=3
    )
    config.classify.optimizer.warmup_steps = 2
    if config.generate.model.name == "dit":
        config.generate.model.update(width=16, depth=1, heads=2, mlp_width=32)
    elif config.generate.model.name == "unet":
        levels = len(config.generate.model.widths)
        config.generate.model.update(widths=(8,) * levels, depths=(1,) * levels, heads=2)
    else:
        config.generate.model.update(width=32, depth=1, mlp_width=32)
    config.generate.update(
        batch_size=16, steps=12, eval_batch_size=16, log_every=4, eval_every=6, checkpoint_every=3,
        samples=64, sample_batch_size=16, guidance_sweep=(1.0, 2.0),
    )  # fmt: skip
    config.generate.schedule.steps = 4
    config.generate.features.steps = 5
    config.generate.optimizer.warmup_steps = 2


def run_name(name: str, options: str | None) -> str:
    """digits, or cifar10_spatial-8x8x16-two_core: also the directory of the run below runs/."""
    return "-".join([name, *filter(None, (options or "").split(","))])


def parse_options(options: str | None, *, latent_shapes: Iterable[str], presets: Iterable[str]):
    """Reads `8x8x16,nearest,two_core` in any order.

    Returns:
      (latent_shape string or None, lookup or None, preset or None).
    Raises:
      ValueError: an unknown word, or two words of one kind; the message lists what is known.
    """
    found: dict[str, str | None] = {"latent shape": None, "interpolation": None, "preset": None}
    known = {
        "latent shape": tuple(latent_shapes),
        "interpolation": ("nearest", "bilinear"),
        "preset": tuple(presets),
    }
    for word in filter(None, (options or "").split(",")):
        kinds = [kind for kind, words in known.items() if word in words]
        if not kinds and re.fullmatch(r"\d+x\d+x\d+", word):
            kinds = ["latent shape"]  # any grid may be tried; the config check judges it
        if not kinds:
            choices = "; ".join(f"{kind}: {', '.join(words)}" for kind, words in known.items())
            raise ValueError(f"unknown option {word!r} after the colon; known are {choices}")
        if found[kinds[0]] is not None:
            raise ValueError(f"two options for the {kinds[0]}: {found[kinds[0]]!r} and {word!r}")
        found[kinds[0]] = word
    return found["latent shape"], found["interpolation"], found["preset"]


def shape(text: str) -> tuple[int, ...]:
    """`8x8x16` -> (8, 8, 16)."""
    return tuple(int(part) for part in text.split("x"))
