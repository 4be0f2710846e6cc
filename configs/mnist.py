"""MNIST as 7x7 grids of 8 channels.

Data: the four original idx files, written as a TFDS set by
    functa prepare mnist --source=FOLDER --data-dir=data
Command: python -m functa.main --config=configs/mnist.py:two_core
Expect: 16 minutes on two CPU cores for the stages before generate; 40.7 to 40.9 dB on the 10,000 test images
(PCA of the same size 25.3), 99.2 % accuracy. Then the generator: 99 % of its digits are seen as the class
asked for; it took 29 minutes while four other programs had most of the two cores. Without a preset: all
trained longer; not measured.
Options: a latent shape (7x7x8, 4x4x8), a lookup (nearest, bilinear), a preset (two_core: two CPU
  cores; tiny: for tests).
"""

from ml_collections import ConfigDict

from functa.configs import common


def get_config(options: str | None = None) -> ConfigDict:
    latent_shape, lookup, preset = common.parse_options(
        options, latent_shapes=("7x7x8", "4x4x8"), presets=("two_core", "tiny")
    )
    config = common.base()
    config.name = common.run_name("mnist", options)
    config.data.name = "mnist"
    config.data.image_shape = (28, 28, 1)
    config.data.validation_examples = 10_000
    config.field.latent_shape = common.shape(latent_shape or "7x7x8")
    if lookup == "bilinear":
        common.use_bilinear(config)
    config.meta_learn.loss = "mse"  # 1.9 dB ahead of log_mse here, see docs/STUDY.md
    config.meta_learn.steps = 20_000
    config.meta_learn.eval_every = 1000
    config.encode.shard_megabytes = 5.0  # 5,636 records
    config.encode.num_augmentations = 4
    config.encode.crop = "pad"
    config.encode.crop_padding = 2
    config.classify.model = common.convnext(widths=(32, 64), depths=(1, 2))
    config.classify.optimizer.learning_rate = 2e-3
    config.classify.eval_every = 1000
    config.classify.steps = 20_000
    # 7x7 cannot be halved. A transformer of its 49 cells has learned less after as much time (docs/STUDY.md).
    config.generate.model = common.unet(widths=(64,), depths=(2,))
    config.generate.batch_size = 64
    config.generate.steps = 20_000
    config.generate.eval_every = 4000  # of 10,000 images at 8 noise levels: as long as 400 steps
    config.generate.guidance.scale = 3.0
    config.stages = (*config.stages, "generate")
    if preset == "two_core":
        config.meta_learn.steps = 3000
        config.classify.steps = 4000
        config.generate.steps = 4000
        config.generate.eval_every = 2000
    if preset == "tiny":
        common.use_tiny(config)
    return config
