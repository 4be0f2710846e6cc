"""Functa of CIFAR-10 with one latent vector per image.

Source: Dupont et al. 2022 (arXiv 2201.12204) for the method. On CIFAR-10,
samuelepapa/spatial_functa reports 27.16, 31.62 and 38.19 dB at 256, 512 and 1,024 floats; PCA of
the same size reaches 26.50, 30.70 and 37.60.
Data: as for configs/cifar10_spatial.py.
Command: python -m functa.main --config=configs/cifar10_functa.py:1x1x256,two_core
Expect: 27.1 dB for the stage meta_learn, after 69 minutes on one of two CPU cores (eca62b1).
The papers' fields have one vector of modulations per image: --config.field.upsampling=1.
Options: a latent shape (1x1x256, 1x1x512, 1x1x1024), a preset (two_core; one_gpu; tiny: for tests).
Without a preset and with one_gpu: full-size runs for accelerators; not measured.
"""

from ml_collections import ConfigDict

from functa.configs import common


def get_config(options: str | None = None) -> ConfigDict:
    latent_shape, interpolation, preset = common.parse_options(
        options,
        latent_shapes=("1x1x256", "1x1x512", "1x1x1024"),
        presets=("two_core", "one_gpu", "tiny"),
    )
    config = common.base()
    config.name = common.run_name("cifar10_functa", options)
    config.data.name = "cifar10"
    config.field.latent_shape = common.shape(latent_shape or "1x1x512")
    config.field.interpolation = interpolation or "nearest"
    # After 400 steps of the two_core preset, on 500 test images, one seed: 20.3 dB; with global
    # coordinates and w0 30 18.9 dB; with periodic coordinates and w0 30 16.6 dB.
    config.field.update(coordinates="periodic", w0=10.0)
    config.field.upsampling = 4  # 200 steps: 21.2 dB, and 19.2 dB with 1 (docs/STUDY.md)
    config.field.update(width=256, depth=10)
    config.meta_learn.update(cells_per_image=0, steps=200_000)
    config.encode.shard_megabytes = 5.0  # 4,436 records of 1x1x512
    config.encode.update(num_augmentations=50, flip=True, crop="pad")
    config.classify.model = common.mlp(width=1024, depth=3)
    config.classify.steps = 50_000
    config.generate.model = common.denoising_mlp(width=1024, depth=8, mlp_width=2048)
    config.generate.steps = 100_000
    common.use_large_generator(config)
    if preset == "two_core":
        config.field.update(width=128, depth=6)
        # Small batches and many steps: in equal time 4 images per step reach 21 dB, 16 reach 19 dB.
        config.meta_learn.update(batch_size=4, steps=8000, eval_every=2000, checkpoint_every=500)
        config.encode.num_augmentations = 2
        config.classify.steps = 5000
        config.generate.model = common.denoising_mlp(width=256, depth=4, mlp_width=1024)
        config.generate.update(steps=5000, eval_every=1000, samples=1000)
        config.generate.features.steps = 1000
    if preset == "one_gpu":
        config.meta_learn.update(batch_size=32, steps=60_000, eval_every=5000, checkpoint_every=500)
        config.encode.batch_size = 512
        config.classify.update(batch_size=256, steps=20_000)
        config.generate.update(steps=30_000, checkpoint_every=500)
    if preset == "tiny":
        common.use_tiny(config)
    return config
