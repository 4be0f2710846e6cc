"""Spatial functa of MNIST.

Data: the four original idx files, written as a TFDS data set by
    functa prepare mnist --source=FOLDER --data-dir=data
Command: python -m functa.main --config=configs/mnist.py:two_core
Expect: 16 minutes on two CPU cores for the stages before generate: 40.7 to 40.9 dB on the 10,000
test images (PCA of the same size 25.3), 99.2 % accuracy. The stage generate took 29 minutes while
four other programs used most of the two cores: 99 % of the digits are classified as the class asked
for. Without a preset all stages train longer; not measured.
Options: a latent shape (7x7x8, 4x4x8), an interpolation (nearest, bilinear), a preset (two_core;
tiny: for tests).
"""

from ml_collections import ConfigDict

from functa.configs import common


def get_config(options: str | None = None) -> ConfigDict:
    latent_shape, interpolation, preset = common.parse_options(
        options, latent_shapes=("7x7x8", "4x4x8"), presets=("two_core", "tiny")
    )
    config = common.base()
    config.name = common.run_name("mnist", options)
    config.data.update(name="mnist", image_shape=(28, 28, 1), validation_examples=10_000)
    config.field.latent_shape = common.shape(latent_shape or "7x7x8")
    if interpolation == "bilinear":
        common.use_bilinear(config)
    # The loss mse is 1.9 dB better than log_mse here (docs/STUDY.md).
    config.meta_learn.update(loss="mse", steps=20_000, eval_every=1000)
    config.encode.shard_megabytes = 5.0  # 5,636 records
    config.encode.update(num_augmentations=4, crop="pad", crop_padding=2)
    config.classify.model = common.convnext(widths=(32, 64), depths=(1, 2))
    config.classify.optimizer.learning_rate = 2e-3
    config.classify.update(steps=20_000, eval_every=1000)
    # One resolution, since 7x7 cannot be halved. A transformer of the 49 cells is worse after the
    # same time (docs/STUDY.md).
    config.generate.model = common.unet(widths=(64,), depths=(2,))
    # An evaluation, of 10,000 images at 8 noise levels, takes as long as 400 steps.
    config.generate.update(batch_size=64, steps=20_000, eval_every=4000)
    config.generate.guidance.scale = 3.0
    config.stages = (*config.stages, "generate")
    if preset == "two_core":
        config.meta_learn.steps = 3000
        config.classify.steps = 4000
        config.generate.update(steps=4000, eval_every=2000)
    if preset == "tiny":
        common.use_tiny(config)
    return config
