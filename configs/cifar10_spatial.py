"""Spatial functa of CIFAR-10.

Source: Bauer et al. 2023 (arXiv 2302.03130): 39.0 dB at 8x8x16 with nearest lookup, 90.3 % top-1
(as restated by LH-NeF, arXiv 2606.08204). PCA of the same cells to the same number of floats:
34.79 dB (8x8x16), 36.39 (4x4x64).
Data: the original archive, written as a TFDS set by
    functa prepare cifar10 --source=cifar-10-python.tar.gz --data-dir=data
Command: python -m functa.main --config=configs/cifar10_spatial.py:8x8x16,nearest,two_core
Expect, on the 10,000 test images, in 25 minutes for all stages on two CPU cores: 38.9 dB after five, 70.8 %
accuracy, generated images 0.90 from real ones where a Gaussian of the latents is 6.17 (README). For the stage
meta_learn, on one core with another run on the other: 39.2 dB after 35 minutes with bilinear lookup and 38.9 dB after
59 minutes at 4x4x64.
Without a preset and with one_gpu: the full-size runs for accelerators, with 50 augmentations; not
measured.
The paper's CIFAR-10 field has a 1x1 map: --config.field.map=linear --config.field.upsampling=1.
Options: a latent shape (8x8x16, 4x4x64), a lookup (nearest, bilinear), a preset (two_core; one_gpu;
  tiny: for tests).
"""

from ml_collections import ConfigDict

from functa.configs import common


def get_config(options: str | None = None) -> ConfigDict:
    latent_shape, lookup, preset = common.parse_options(
        options, latent_shapes=("8x8x16", "4x4x64"), presets=("two_core", "one_gpu", "tiny")
    )
    config = common.base()
    config.name = common.run_name("cifar10_spatial", options)
    config.data.name = "cifar10"
    config.field.latent_shape = common.shape(latent_shape or "8x8x16")
    if lookup == "bilinear":
        common.use_bilinear(config)
    config.field.map = "conv3x3"  # neighbouring cells share what they hold (docs/STUDY.md)
    # Modulations for parts of 4x4 pixels: two to a side of a cell of 8x8. Bilinear lookup, which fades
    # one into the next, wants them finer (docs/STUDY.md, "Sub-cells").
    rows, columns, _ = config.field.latent_shape
    large = 32 // rows * (32 // columns) > 16  # pixels of a cell
    config.field.upsampling = 2 if large or lookup == "bilinear" else 1
    config.field.width = 256
    config.meta_learn.cells_per_image = 0  # a cell's values depend on its neighbours
    config.meta_learn.batch_size = 128
    config.meta_learn.steps = 50_000
    config.meta_learn.eval_every = 2500
    config.meta_learn.checkpoint_every = 1000
    config.encode.shard_megabytes = 10.0  # 4,649 records
    config.encode.num_augmentations = 50
    config.encode.flip = True
    config.encode.crop = "pad"
    config.classify.model = common.transformer(width=128, depth=12, heads=16, mlp_width=256)
    config.classify.steps = 100_000
    config.classify.ema_decay = 0.9999
    config.generate.model = common.dit(width=384, depth=12, heads=6, mlp_width=1536)
    config.generate.steps = 200_000
    common.use_large_generator(config)
    if preset == "two_core":
        config.field.width = 64
        config.meta_learn.batch_size = 8
        # A cell of 8x8 pixels takes longer to learn than one of 4x4.
        config.meta_learn.steps = 10_000 if large else 4000
        config.meta_learn.eval_every = config.meta_learn.steps // 5
        config.meta_learn.checkpoint_every = 500
        config.encode.num_augmentations = 2
        config.classify.model = common.convnext(widths=(64, 128), depths=(2, 2))
        config.classify.steps = 4000
        config.classify.ema_decay = 0.999
        # Of 2x2 cells: a step of all cells, or of a U-Net, takes four times as long, and its samples are no better
        # after as much time (docs/STUDY.md).
        config.generate.model = common.dit(width=128, depth=4, patch=2)
        config.generate.batch_size = 64
        config.generate.steps = 7000
        config.generate.eval_every = 1000
        config.generate.checkpoint_every = 500
        config.generate.guidance.scale = 2.0
        config.generate.samples = 1000
        config.generate.features.steps = 1000
    if preset == "one_gpu":
        config.meta_learn.batch_size = 64
        config.meta_learn.steps = 40_000
        config.meta_learn.checkpoint_every = 500
        config.encode.batch_size = 512
        config.classify.model = common.convnext(widths=(128, 256), depths=(2, 4))
        config.classify.mixup = 0.5
        config.classify.batch_size = 256
        config.classify.steps = 30_000
        config.classify.ema_decay = 0.999
        config.generate.model = common.dit(width=256, depth=8, heads=4, mlp_width=1024)
        config.generate.steps = 60_000
        config.generate.checkpoint_every = 500
    if preset == "tiny":
        common.use_tiny(config)
    return config
