"""Spatial functa of handwritten digits of 8x8 pixels: all stages in minutes on a laptop.

Data: the 1,797 digits of scikit-learn (UCI "Optical Recognition of Handwritten Digits", Alpaydin
and Kaynak 1998); nothing is downloaded.
Command: python -m functa.main --config=configs/digits.py
Expect: five minutes on two CPU cores; 36.0 to 36.4 dB on the 360 test images (PCA of the same size
18.8), 98 % accuracy, 98 % of the generated digits classified as the class asked for. Rounding alone
causes such differences.
Options: a latent shape (2x2x8), an interpolation (nearest, bilinear), a preset (tiny: for tests).
"""

from ml_collections import ConfigDict

from functa.configs import common


def get_config(options: str | None = None) -> ConfigDict:
    latent_shape, interpolation, preset = common.parse_options(
        options, latent_shapes=("2x2x8",), presets=("tiny",)
    )
    config = common.base()
    config.name = common.run_name("digits", options)
    config.data.update(
        source="digits", name="digits", image_shape=(8, 8, 1), validation_examples=137
    )
    config.field.latent_shape = common.shape(latent_shape or "2x2x8")
    if interpolation == "bilinear":
        common.use_bilinear(config)
    # Flips, since 1,300 images are soon overfitted: 39 dB on them and 34 dB on others without.
    config.meta_learn.update(
        flips=True, steps=1500, eval_every=300, batch_size=128, eval_batch_size=360
    )
    config.encode.shard_megabytes = 0.3  # 1,840 records, so that several processes have shards
    config.encode.update(num_augmentations=8, crop="pad", crop_padding=1)
    config.classify.model = common.transformer(width=64, depth=2, mlp_width=128)
    config.classify.eval_batch_size = 360
    config.generate.model = common.dit(width=64, depth=3, mlp_width=256)
    config.generate.update(eval_batch_size=360, sample_batch_size=180)
    config.generate.guidance.scale = 1.5
    config.generate.features.steps = 600
    config.stages = (*config.stages, "generate")
    if preset == "tiny":
        common.use_tiny(config)
    return config
