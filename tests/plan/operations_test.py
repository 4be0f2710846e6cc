"""Counts of multiply-adds, held against numbers by hand, traced programs and XLA's own account."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from functa.configs import cifar10_spatial
from functa.diffusion import guidance, schedules, solvers
from functa.fields.fitter import build_field, build_fitter
from functa.models import classifier, denoiser
from functa.plan import (
    downstream_operations,
    operations,
    program_operations,
    traced_operations,
    xla_stats,
)
from functa.runtime import mesh
from functa.training import optimizers
from functa.training.tasks import meta_learning


@pytest.fixture(scope="module")
def field():
    """The field of the paper: depth 6, width 256, 1x1 map, 8x8x16 latents of 32x32 images."""
    config = cifar10_spatial.get_config("8x8x16,nearest")
    config.field.update(map="linear", upsampling=1)
    assert (config.field.depth, config.field.width) == (6, 256)
    return build_field(config)


def test_a_forward_is_the_published_count(field):
    assert operations.forward(field) == pytest.approx(0.27106e9, rel=1e-4)


def test_the_parts_add_up(field):
    points = 1024
    hidden = 4 * 256 * 256 + 256 * 3
    assert operations.map_operations(field) == 64 * 16 * 5 * 256
    assert operations.shared_layers(field) == points * 2 * 256
    once = points * hidden + 64 * 16 * 5 * 256
    assert operations.fit(field, steps=3) == 5 * once
    assert operations.training(field, steps=3, second_order=True) == 15 * once
    assert operations.training(field, steps=3, second_order=False) == 7 * once
    assert (
        operations.training(field, steps=1, second_order=True) == 3 * once
    )  # no second derivative


@pytest.mark.parametrize(("kind", "cell"), [("conv3x3", 9 * 16 * 1280), ("mlp", 256 * (16 + 1280))])
def test_other_maps(field, kind, cell):
    other = dataclasses.replace(field, map=kind)
    assert operations.map_operations(other) == 64 * cell


def test_sub_cells_have_maps_of_their_own(field):
    other = dataclasses.replace(field, upsampling=2)
    assert operations.map_operations(other) == 4 * operations.map_operations(field)


def traced_step(config):
    """(multiply-adds of the traced step of meta_learn on one device, what the formulas say)."""
    whole = mesh.make_mesh(jax.devices()[:1])
    step = xla_stats.described_step(config, "meta_learn", whole)
    shapes = [leaf.shape for leaf in jax.tree.leaves(step.state.params)]
    settings, loop = config.meta_learn, config.inner_loop
    cost = program_operations.training(
        meta_learning.train_field(config.meta_learn, build_fitter(config)),
        steps=loop.steps,
        second_order=loop.second_order,
        chunks=1 if settings.cells_per_image else loop.chunks,
    )
    examples = settings.batch_size * (settings.cells_per_image // settings.window**2 or 1)
    update = program_operations.optimizer(settings.optimizer.name, shapes)
    counted = traced_operations.multiply_adds(step.function, *step.arguments)
    return counted, cost.each * examples + cost.once * settings.micro_batches + update


def small(options="8x8x16,nearest,tiny", **changes):
    config = cifar10_spatial.get_config(options)
    config.field.width = 32
    config.meta_learn.batch_size = 4
    config.update_from_flattened_dict(changes)
    return config


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"meta_learn.optimizer.name": "adam", "inner_loop.second_order": False},
        {"field.map": "linear", "meta_learn.cells_per_image": 4},
        {
            "meta_learn.cells_per_image": 32,
            "meta_learn.window": 4,
            "meta_learn.micro_batches": 2,
        },
        pytest.param(
            {"field.map": "mlp", "field.modulation": "shift_scale"}, marks=pytest.mark.slow
        ),
        {"field.coordinates": "global", "inner_loop.chunks": 4},
        {"field.interpolation": "bilinear", "field.coordinates": "periodic", "field.upsampling": 2},
        pytest.param({"inner_loop.steps": 1}, marks=pytest.mark.slow),
        pytest.param({"field.latent_shape": (4, 4, 64)}, marks=pytest.mark.slow),
        pytest.param({"data.image_shape": (64, 64, 3)}, marks=pytest.mark.slow),
        pytest.param(
            {"inner_loop.chunks": 4, "inner_loop.second_order": False}, marks=pytest.mark.slow
        ),
        pytest.param(
            {
                "field.interpolation": "bilinear",
                "field.map": "mlp",
                "inner_loop.second_order": False,
            },
            marks=pytest.mark.slow,
        ),
    ],
    ids=str,
)
def test_the_formulas_are_of_the_program_as_it_is(changes):
    """What they leave out, the first layer and the basis of bilinear fields, is largest in so narrow a field."""
    config = small(**changes)
    counted, planned = traced_step(config)
    left_out = 0.01 if config.field.interpolation == "bilinear" else 0.003
    assert planned == pytest.approx(counted, rel=left_out)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"field.interpolation": "bilinear"},
        pytest.param({"field.map": "mlp"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_fitting_is_counted_as_it_is(changes):
    config = small(**changes)
    fit, arguments = xla_stats.described_encoder(config, mesh.make_mesh(jax.devices()[:1]))
    cost = program_operations.fit(build_field(config), steps=config.inner_loop.steps)
    planned = cost.each * config.encode.batch_size + cost.once
    assert planned == pytest.approx(traced_operations.multiply_adds(fit, *arguments), rel=0.01)


@pytest.mark.parametrize("shape", [(8, 24), (24, 8), (12, 12)])
def test_muon_is_counted_product_by_product(shape):
    matrix = jax.ShapeDtypeStruct(shape, jnp.float32)
    assert program_operations.muon([shape]) == traced_operations.multiply_adds(
        optimizers.orthogonalize, matrix
    )
    assert program_operations.muon([(7,), (3, 3, 3)]) == 0
    assert program_operations.optimizer("adamw", [shape]) == 0


PLAIN = {"remat": False, "dtype": "float32"}
MODULES = {
    "mlp classifier": classifier.Mlp(num_classes=7, width=96, depth=2, dropout=0.1),
    "transformer": classifier.TransformerClassifier(
        num_classes=7,
        patch=2,
        width=96,
        depth=2,
        heads=4,
        mlp_width=192,
        drop_path=0.0,
        dropout=0.1,
        **PLAIN,
    ),
    "convnext": classifier.ConvNext(
        num_classes=7, widths=(96, 128, 160), depths=(1, 2, 1), drop_path=0.1, dropout=0.0, **PLAIN
    ),
    "dit": denoiser.Dit(num_classes=7, patch=2, width=96, depth=2, heads=4, mlp_width=192, **PLAIN),
    "unet": denoiser.UNet(num_classes=7, widths=(32, 64), depths=(2, 1), heads=4, **PLAIN),
    "unet of one resolution": denoiser.UNet(
        num_classes=7, widths=(32,), depths=(1,), heads=4, **PLAIN
    ),
    "mlp denoiser": denoiser.Mlp(num_classes=7, width=96, depth=2, mlp_width=192),
}


def described_model(module, latent_shape):
    """(function of (params, inputs), descriptions of both), for one example."""
    inputs = [jnp.zeros((1, *latent_shape))]
    if type(module) in denoiser.DENOISERS.values():
        inputs += [jnp.zeros(1), jnp.zeros(1, jnp.int32)]
        mode = {}
    else:
        mode = {"train": False}
    params = jax.eval_shape(lambda key: module.init(key, *inputs, **mode), jax.random.key(0))
    shapes = [jax.ShapeDtypeStruct(value.shape, value.dtype) for value in inputs]
    return (lambda params, *inputs: module.apply(params, *inputs, **mode)), (params, *shapes)


@pytest.mark.parametrize("name", MODULES)
def test_downstream_models_are_counted_product_by_product(name):
    module, shape = MODULES[name], (8, 12, 6)
    function, arguments = described_model(module, shape)
    assert downstream_operations.forward(module, shape) == traced_operations.multiply_adds(
        function, *arguments
    )

    def loss(params, *inputs):
        return function(params, *inputs).sum()

    assert downstream_operations.training(module, shape) == traced_operations.multiply_adds(
        jax.value_and_grad(loss), *arguments
    )
    if hasattr(module, "remat"):
        module = module.clone(remat=True)
        function, _ = described_model(module, shape)
        assert downstream_operations.training(module, shape) == traced_operations.multiply_adds(
            jax.value_and_grad(loss), *arguments
        )


@pytest.mark.parametrize(
    "name",
    [
        "transformer",
        "dit",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in MODULES
            if name not in ("transformer", "dit")
        ),
    ],
)
def test_downstream_models_are_counted_as_xla_does(name):
    """XLA counts what is not a product too, here up to a twelfth, and leaves out what a 3x3 convolution makes of the
    zeros around the grid, here up to a twelfth of it."""
    module, shape = MODULES[name], (16, 16, 6)
    function, arguments = described_model(module, shape)
    operations_of_xla = jax.jit(function).lower(*arguments).cost_analysis()["flops"]
    ratio = operations_of_xla / 2 / downstream_operations.forward(module, shape)
    assert 0.9 < ratio < 1.13


def test_a_transformer_by_hand():
    """2x2 cells of 3 channels and CLS, width 4, one block, an inner width of 8, 7 classes."""
    module = classifier.TransformerClassifier(
        num_classes=7,
        patch=1,
        width=4,
        depth=1,
        heads=2,
        mlp_width=8,
        drop_path=0.0,
        dropout=0.0,
        **PLAIN,
    )
    multiply_adds = 0
    for _cell in range(4):
        multiply_adds += 3 * 4  # embedding
    for _token in range(5):
        multiply_adds += 4 * 12  # queries, keys, values
        for _other in range(5):
            multiply_adds += 4  # scores of both heads, two channels each
            multiply_adds += 4  # the mixture
        multiply_adds += 4 * 4  # output
        multiply_adds += 4 * 8 + 8 * 4  # feed forward
    multiply_adds += 4 * 7  # head
    assert downstream_operations.forward(module, (2, 2, 3)) == multiply_adds


def test_what_is_no_model_of_latents_is_not_counted():
    with pytest.raises(TypeError, match="Dense is no model of latents"):
        downstream_operations.forward(nn.Dense(3), (2, 2, 3))


@pytest.mark.parametrize(
    ("solver", "scale", "interval"),
    [
        ({"name": "euler"}, 1.0, (0.0, 1e6)),
        ({"name": "heun"}, 1.0, (0.0, 1e6)),
        ({"name": "heun"}, 2.0, (0.0, 1e6)),
        ({"name": "heun"}, 2.0, (0.1, 5.0)),
        ({"name": "dpmpp_2m"}, 0.0, (0.1, 5.0)),
        (
            {"name": "stochastic", "churn": 4.0, "churn_min": 0.05, "churn_max": 50.0, "churn_noise": 1.0},
            3.0,
            (0.1, 5.0),
        ),
    ],
    ids=str,
)  # fmt: skip
def test_evaluations_are_those_that_a_sampler_makes(solver, scale, interval):
    schedule = {"name": "karras", "steps": 5, "sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0}
    asked = []

    def denoise(noisy, sigma, labels):
        asked.append(float(sigma[0]))
        return 0.5 * noisy

    with jax.disable_jit():  # loops and conditions are Python's
        solvers.sample(
            guidance.guide(denoise, null_class=3, scale=scale, interval=interval),
            solvers.make_solver(**solver),
            schedules.make_schedule(**schedule),
            jax.random.key(0),
            numbers=jnp.arange(1),
            labels=jnp.zeros(1, jnp.int32),
            latent_shape=(1, 1, 2),
            keep_trajectory=False,
        )
    assert downstream_operations.evaluations(
        schedule=schedule, solver=solver, scale=scale, interval=interval
    ) == len(asked)


def test_products_of_loops_branches_and_what_is_not_used():
    matrix = jax.ShapeDtypeStruct((4, 4), jnp.float32)

    def looped(x, matrix):
        # What a turn multiplies is used by the next one alone.
        return jax.lax.scan(lambda x, _: (x @ matrix, x), x, None, length=7)[1]

    def either(x, matrix):
        return jax.lax.cond(x[0, 0] > 0, lambda x: x @ matrix @ matrix, lambda x: x @ matrix, x)

    def unused(x, matrix):
        _ = jax.jit(jnp.matmul)(x, matrix)
        return jax.jit(lambda x, y: (x @ y, x @ y @ y))(x, matrix)[0]

    assert traced_operations.multiply_adds(looped, matrix, matrix) == 7 * 64
    assert traced_operations.multiply_adds(either, matrix, matrix) == 2 * 64
    assert traced_operations.multiply_adds(unused, matrix, matrix) == 64
    assert traced_operations.multiply_adds(lambda x: x + x, matrix) == 0
    with pytest.raises(ValueError, match="whose number of turns is not known"):
        traced_operations.multiply_adds(
            lambda x: jax.lax.while_loop(lambda x: x[0, 0] > 0, lambda x: x @ x, x), matrix
        )


def test_products_of_a_convolution_and_of_its_gradient():
    """2x2 windows side by side: each pixel meets the kernel once, forward and in both derivatives."""
    image = jax.ShapeDtypeStruct((1, 6, 6, 3), jnp.float32)
    kernel = jax.ShapeDtypeStruct((2, 2, 3, 5), jnp.float32)

    def convolve(image, kernel):
        layout = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            image, kernel, (2, 2), "VALID", dimension_numbers=layout
        )

    once = 6 * 6 * 3 * 5
    assert traced_operations.multiply_adds(convolve, image, kernel) == once
    both = jax.value_and_grad(lambda *inputs: convolve(*inputs).sum(), argnums=(0, 1))
    assert traced_operations.multiply_adds(both, image, kernel) <= 3 * once
