"""Spatial functa of ImageNet-1k at 256x256, and of photographs in class folders.

Source: Bauer et al. 2023 (arXiv 2302.03130): 38.4 dB at 32x32x64 (as restated by LH-NeF, arXiv 2606.08204).
Data: the original archives, or TFDS's own imagenet2012 in ArrayRecord form; the former are written by
    functa prepare imagenet2012 --source TRAIN.tar VAL.tar --labels=FILE --data-dir=data
Command: python -m functa.main --config=configs/imagenet.py
What it takes, projected by `functa plan imagenet HARDWARE --decode-rate=2000 --image-bytes=110e3`; a fifth of
the peak and 200 MB/s between a host and storage are assumed. It was never run at this size:

| stage | batch | on a device of v5e-256 | v5e-256 | 64xH100 | leaves |
|---|---|---|---|---|---|
| meta_learn | 256 | 1.5 GB | 8 min | 15 min | 0.2 GB |
| encode | 4 a device | 0.9 GB | 1.3 min | 3 min | 172 GB, int8, two copies a training image |
| classify | 1,024 | 1.1 GB | 20 min | 1.3 h | 1 GB |
| generate | 256 | 3.4 GB | 1.1 h | 3.1 h | 9 GB |

Options: a latent shape (32x32x64, 16x16x256), a lookup (nearest, bilinear), a preset (photos; tiny: for tests).

photos: the same programs in sizes for two CPU cores and a thousand photographs, as 32x32x16, which
    functa prepare photos --source=FOLDER --data-dir=data
writes from class folders; give the number of classes by --config.data.num_classes. At 32x32x64, a third of their
numbers, PCA of small photographs is hard to beat: 45.4 dB on those of the Clothing data set small, whose colours
JPEG keeps at half the resolution; at 32x32x16 it has 31.9, the field 34.7, and the classifier sees
49.5 % of ten classes; all stages take 33 minutes (docs/SCALE.md).
"""

from ml_collections import ConfigDict

from functa.configs import common


def get_config(options: str | None = None) -> ConfigDict:
    latent_shape, lookup, preset = common.parse_options(
        options, latent_shapes=("32x32x64", "16x16x256"), presets=("photos", "tiny")
    )
    config = common.base()
    config.name = common.run_name("imagenet", options)
    if preset is None:
        config.data.name, config.data.num_classes = "imagenet2012", 1000
        config.data.test_split = "validation"  # the labels of its test split were never published
        config.data.validation_examples = 10_000
    else:
        config.data.name, config.data.num_classes = "photos", 10
        config.data.validation_examples = 100
    config.data.image_shape = (256, 256, 3)
    config.data.cache = "none"
    usual = "32x32x16" if preset == "photos" else "32x32x64"
    config.field.latent_shape = common.shape(latent_shape or usual)
    if lookup == "bilinear":
        common.use_bilinear(config)
    config.field.map = "conv3x3"
    config.field.upsampling = 2
    config.field.width = 256
    config.field.depth = 8
    # Four windows of 64x64 pixels of each image: a quarter of its work, crops at random, and no more images than
    # hosts can decode (docs/SCALE.md, "Input").
    rows, _, _ = config.field.latent_shape
    config.meta_learn.window = rows // 4
    config.meta_learn.cells_per_image = 4 * config.meta_learn.window**2
    config.meta_learn.batch_size = 256
    config.meta_learn.steps = 50_000
    config.meta_learn.eval_batch_size = 256
    config.meta_learn.eval_every = 2500
    config.meta_learn.checkpoint_every = 500
    if lookup != "bilinear":
        config.inner_loop.chunks = 8  # of whole images, in evaluation and encoding
    config.encode.batch_size = 4
    config.encode.dtype = "int8"
    config.encode.num_augmentations = 2
    config.encode.flip = True
    config.encode.crop = "resize"
    # ViT-S of 2x2 cells.
    config.classify.model = common.transformer(
        width=384, depth=12, heads=6, mlp_width=1536, dropout=0.0, patch=2, drop_path=0.1, remat=True,
        dtype="bfloat16",
    )  # fmt: skip
    config.classify.cache = "none"
    config.classify.batch_size = 1024
    config.classify.mixup = 0.2
    config.classify.steps = 112_000  # each image 90 times, 45 epochs of its two copies
    config.classify.optimizer.warmup_steps = 10_000
    config.classify.ema_decay = 0.9999
    config.classify.eval_batch_size = 1024
    config.classify.eval_every = 5000
    config.classify.checkpoint_every = 1000
    # DiT-B of 2x2 cells.
    config.generate.model = common.dit(
        width=768, depth=12, heads=12, mlp_width=3072, patch=2, remat=True, dtype="bfloat16"
    )
    # Muon would take 96 % of a step: an update of 131 million parameters is 769 G multiply-adds, on every device the
    # same (functa plan).
    config.generate.optimizer.update(name="adamw", learning_rate=2e-4, warmup_steps=5000)
    config.generate.steps = 400_000
    config.generate.cache = "none"
    config.generate.eval_batch_size = 1024
    config.generate.sample_batch_size = 8
    common.use_large_generator(config)
    if preset == "photos":
        use_photos(config)
    if preset == "tiny":
        use_photos(config)
        config.data.image_shape = (32, 32, 3)
        config.field.latent_shape = (4, 4, 4)
        config.meta_learn.update(window=2, cells_per_image=4)
        if lookup != "bilinear":
            config.inner_loop.chunks = 2
        common.use_tiny(config)
    return config


def use_photos(config: ConfigDict) -> None:
    """A thousand photographs on two cores."""
    config.data.cache = "host"
    config.field.update(width=64, depth=6)
    config.meta_learn.update(
        batch_size=4, cells_per_image=config.meta_learn.window**2, flips=True, steps=3000, eval_batch_size=4,
        eval_every=1000, checkpoint_every=250,
    )  # fmt: skip
    config.classify.model = common.convnext(widths=(32, 64, 128), depths=(2, 2, 2))
    config.classify.update(
        cache="host", batch_size=32, steps=2000, ema_decay=0.99, eval_batch_size=100, eval_every=500,
        checkpoint_every=250,
    )  # fmt: skip
    config.classify.optimizer.warmup_steps = 100
    config.generate.model = common.dit(width=128, depth=4, patch=4)
    config.generate.optimizer = common.optimizer("muon", 3e-2)
    config.generate.update(
        cache="host", batch_size=32, steps=2000, eval_batch_size=50, eval_every=1000, checkpoint_every=250,
        samples=300, sample_batch_size=10,
    )  # fmt: skip
    config.generate.features.update(steps=300)
