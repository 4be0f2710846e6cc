"""Spatial functa of ImageNet-1k at 256x256, and of photographs in class folders.

Source: Bauer et al. 2023 (arXiv 2302.03130): 38.4 dB at 32x32x64 (as restated by LH-NeF, arXiv
2606.08204).
Data: TFDS's imagenet2012 in ArrayRecord files, or the original archives, written by
    functa prepare imagenet2012 --source TRAIN.tar VAL.tar --labels=FILE --data-dir=data
Command: python -m functa.main --config=configs/imagenet.py
Cost, projected by `functa plan imagenet HARDWARE --decode-rate=2000 --image-bytes=110e3`, which
assumes a fifth of the peak and 200 MB/s between a host and storage; never run at this size:

| stage | batch | memory per device, v5e-256 | v5e-256 | 64xH100 | output |
|---|---|---|---|---|---|
| meta_learn | 256 | 1.5 GB | 8 min | 15 min | 0.2 GB |
| encode | 4 per device | 0.9 GB | 1.3 min | 3 min | 172 GB, int8, two copies of a training image |
| classify | 1,024 | 1.1 GB | 20 min | 1.3 h | 1 GB |
| generate | 256 | 3.4 GB | 1.1 h | 3.1 h | 9 GB |

Options: a latent shape (32x32x64, 16x16x256), an interpolation (nearest, bilinear), a preset (photos;
tiny: for tests).

photos: sizes for two CPU cores and a thousand photographs, latents 32x32x16. The data set is written
from class folders by
    functa prepare photos --source=FOLDER --data-dir=data
Set the number of classes by --config.data.num_classes. On the Clothing data set (small): 34.7 dB (PCA
31.9), 49.5 % accuracy of ten classes, 33 minutes for all stages (docs/SCALE.md). At 32x32x64 PCA
reaches 45.4 dB there, since JPEG stores colors at half the resolution.
"""

from ml_collections import ConfigDict

from functa.configs import common


def get_config(options: str | None = None) -> ConfigDict:
    latent_shape, interpolation, preset = common.parse_options(
        options, latent_shapes=("32x32x64", "16x16x256"), presets=("photos", "tiny")
    )
    config = common.base()
    config.name = common.run_name("imagenet", options)
    config.data.update(image_shape=(256, 256, 3), cache="none")
    if preset is None:
        # The labels of ImageNet's test split are not public.
        config.data.update(name="imagenet2012", num_classes=1000, test_split="validation")
        config.data.validation_examples = 10_000
    else:
        config.data.update(name="photos", num_classes=10, validation_examples=100)
    default_shape = "32x32x16" if preset == "photos" else "32x32x64"
    config.field.latent_shape = common.shape(latent_shape or default_shape)
    if interpolation == "bilinear":
        common.use_bilinear(config)
    else:
        config.inner_loop.chunks = 8  # of whole images, in evaluation and encoding
    config.field.update(map="conv3x3", upsampling=2, width=256, depth=8)
    # Four windows of 64x64 pixels per image: a quarter of the work, at random positions, and no more
    # images than hosts can decode (docs/SCALE.md, "Input").
    window = config.field.latent_shape[0] // 4
    config.meta_learn.update(
        window=window, cells_per_image=4 * window**2, batch_size=256, steps=50_000,
        eval_batch_size=256, eval_every=2500, checkpoint_every=500,
    )  # fmt: skip
    config.encode.update(batch_size=4, dtype="int8", num_augmentations=2, flip=True, crop="resize")
    # ViT-S with patches of 2x2 cells.
    config.classify.model = common.transformer(
        width=384, depth=12, heads=6, mlp_width=1536, dropout=0.0, patch=2, drop_path=0.1,
        remat=True, dtype="bfloat16",
    )  # fmt: skip
    config.classify.update(
        cache="none", batch_size=1024, mixup=0.2, ema_decay=0.9999, eval_batch_size=1024,
        eval_every=5000, checkpoint_every=1000,
    )  # fmt: skip
    config.classify.steps = 112_000  # 90 epochs of the images, 45 of their two copies
    config.classify.optimizer.warmup_steps = 10_000
    # DiT-B with patches of 2x2 cells.
    config.generate.model = common.dit(
        width=768, depth=12, heads=12, mlp_width=3072, patch=2, remat=True, dtype="bfloat16"
    )
    # Muon's update of 131 million parameters would take 96 % of a step: 769 G multiply-adds on every
    # device (functa plan).
    config.generate.optimizer.update(name="adamw", learning_rate=2e-4, warmup_steps=5000)
    config.generate.update(steps=400_000, cache="none", eval_batch_size=1024, sample_batch_size=8)
    common.use_large_generator(config)
    if preset is not None:
        use_photos(config)
    if preset == "tiny":
        config.data.image_shape = (32, 32, 3)
        config.field.latent_shape = (4, 4, 4)
        config.meta_learn.update(window=2, cells_per_image=4)
        config.inner_loop.chunks = min(config.inner_loop.chunks, 2)
        common.use_tiny(config)
    return config


def use_photos(config: ConfigDict) -> None:
    """Sizes for a thousand photographs on two cores."""
    config.data.cache = "host"
    config.field.update(width=64, depth=6)
    config.meta_learn.update(
        batch_size=4, cells_per_image=config.meta_learn.window**2, flips=True, steps=3000,
        eval_batch_size=4, eval_every=1000, checkpoint_every=250,
    )  # fmt: skip
    training = dict(cache="host", batch_size=32, steps=2000, checkpoint_every=250)
    config.classify.model = common.convnext(widths=(32, 64, 128), depths=(2, 2, 2))
    config.classify.update(training, ema_decay=0.99, eval_batch_size=100, eval_every=500)
    config.classify.optimizer.warmup_steps = 100
    config.generate.model = common.dit(width=128, depth=4, patch=4)
    config.generate.optimizer = common.optimizer("muon", 3e-2)
    config.generate.update(training, eval_batch_size=50, eval_every=1000)
    config.generate.update(samples=300, sample_batch_size=10)
    config.generate.features.steps = 300
