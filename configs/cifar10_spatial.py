"""Spatial functa of CIFAR-10.

Source: Bauer et al. 2023 (arXiv 2302.03130): 39.0 dB at 8x8x16 with nearest interpolation, 90.3 %
top-1 (as restated by LH-NeF, arXiv 2606.08204). PCA of the same cells to the same number of floats:
34.79 dB (8x8x16), 36.39 (4x4x64).
Data: the original archive, written as a TFDS data set by
    functa prepare cifar10 --source=cifar-10-python.tar.gz --data-dir=data
Command: python -m functa.main --config=configs/cifar10_spatial.py:8x8x16,nearest,two_core
Expect, on the 10,000 test images, in 25 minutes for all stages on two CPU cores: 38.9 dB after five
minutes, 70.8 % accuracy, Frechet distance of generated images 0.90 (6.17 for a Gaussian of the
latents; README). The stage meta_learn on one core, with another run on the other: 39.2 dB after 35
minutes with bilinear interpolation, 38.9 dB after 59 minutes at 4x4x64.
The paper's CIFAR-10 field has a 1x1 map: --config.field.map=linear --config.field.upsampling=1.
Options: a latent shape (8x8x16, 4x4x64), an interpolation (nearest, bilinear), a preset (two_core;
one_gpu; tiny: for tests). Without a preset and with one_gpu: full-size runs for accelerators, with
50 augmentations; not measured.
"""

from ml_collections import ConfigDict

from functa.configs import common


def get_config(options: str | None = None) -> ConfigDict:
    latent_shape, interpolation, preset = common.parse_options(
        options, latent_shapes=("8x8x16", "4x4x64"), presets=("two_core", "one_gpu", "tiny")
    )
    config = common.base()
    config.name = common.run_name("cifar10_spatial", options)
    config.data.name = "cifar10"
    config.field.latent_shape = common.shape(latent_shape or "8x8x16")
    if interpolation == "bilinear":
        common.use_bilinear(config)
    # 3x3 maps and sub-cells for cells of 8x8 pixels and for bilinear interpolation: docs/STUDY.md.
    rows, columns, _ = config.field.latent_shape
    large_cells = 32 // rows * (32 // columns) > 16  # pixels
    upsampling = 2 if large_cells or interpolation == "bilinear" else 1
    config.field.update(map="conv3x3", upsampling=upsampling, width=256)
    config.meta_learn.cells_per_image = 0  # a cell's values depend on the neighboring cells
    config.meta_learn.update(batch_size=128, steps=50_000, eval_every=2500, checkpoint_every=1000)
    config.encode.shard_megabytes = 10.0  # 4,649 records
    config.encode.update(num_augmentations=50, flip=True, crop="pad")
    config.classify.model = common.transformer(width=128, depth=12, heads=16, mlp_width=256)
    config.classify.update(steps=100_000, ema_decay=0.9999)
    config.generate.model = common.dit(width=384, depth=12, heads=6, mlp_width=1536)
    config.generate.steps = 200_000
    common.use_large_generator(config)
    if preset == "two_core":
        config.field.width = 64
        steps = 10_000 if large_cells else 4000  # cells of 8x8 pixels take longer to learn
        config.meta_learn.update(
            batch_size=8, steps=steps, eval_every=steps // 5, checkpoint_every=500
        )
        config.encode.num_augmentations = 2
        config.classify.model = common.convnext(widths=(64, 128), depths=(2, 2))
        config.classify.update(steps=4000, ema_decay=0.999)
        # Without patches, or with a U-Net, a step takes four times as long, and samples are no
        # better after the same time (docs/STUDY.md).
        config.generate.model = common.dit(width=128, depth=4, patch=2)
        config.generate.update(
            batch_size=64, steps=7000, eval_every=1000, checkpoint_every=500, samples=1000
        )
        config.generate.guidance.scale = 2.0
        config.generate.features.steps = 1000
    if preset == "one_gpu":
        config.meta_learn.update(batch_size=64, steps=40_000, checkpoint_every=500)
        config.encode.batch_size = 512
        config.classify.model = common.convnext(widths=(128, 256), depths=(2, 4))
        config.classify.update(mixup=0.5, batch_size=256, steps=30_000, ema_decay=0.999)
        config.generate.model = common.dit(width=256, depth=8, heads=4, mlp_width=1024)
        config.generate.update(steps=60_000, checkpoint_every=500)
    if preset == "tiny":
        common.use_tiny(config)
    return config
