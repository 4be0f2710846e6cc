"""How many multiply-adds the mathematics of functa needs, whatever a program makes of it.

Only matrix products are counted, and each only as often as it must be done: the first inner step is
the same for all examples and counts as nothing; gradients of the latents need no gradients of the
weights. The ratio of this count to the time taken is what the benchmarks compare with the rate of
plain matrix products.

With F multiply-adds of the hidden layers for one point, s inner steps and second order:

    fit        forward and backward to the latents for steps 2 ... s   2 F (s - 1)
               the values after the last step                            F
    training   backward of that forward, activations and weights       2 F
               backward of every forward and backward of the fit       4 F (s - 1)

so fitting takes F (2 s - 1) and a second-order training step F (6 s - 3).
"""

from functa.fields.field import Field


def forward(field: Field) -> int:
    """Multiply-adds of one image at the training resolution, map included; first layer per point.

    For depth 6, width 256 and 8x8x16 latents of 32x32 images that is 0.27106e9.
    """
    h, w, c = field.image_shape
    features = field.num_features
    width, hidden = field.width, field.depth - 2
    points = h * w * (features * width + hidden * width**2 + width * c)
    return points + map_operations(field)


def map_operations(field: Field) -> int:
    """Multiply-adds that turn the latents of one image into modulations."""
    i, j, d = field.latent_shape
    m = field.num_modulations * field.upsampling**2
    cell = {"linear": d * m, "conv3x3": 9 * d * m, "mlp": field.width * (d + m)}[field.map]
    return i * j * cell


def shared_layers(field: Field) -> int:
    """Of `forward`, what is the same for all images: the first layer where it sees coords only."""
    h, w, _ = field.image_shape
    return h * w * field.num_features * field.width


def fit(field: Field, *, steps: int) -> int:
    """Multiply-adds of fitting one image and of the values after the last step."""
    return (forward(field) - shared_layers(field)) * (2 * steps - 1)


def training(field: Field, *, steps: int, second_order: bool) -> int:
    """Multiply-adds of one image in a training step: `fit` and the gradient through it."""
    once = forward(field) - shared_layers(field)
    if second_order:
        return once * (6 * steps - 3)
    return fit(field, steps=steps) + 2 * once
