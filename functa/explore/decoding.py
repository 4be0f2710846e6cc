"""A field asked for more positions, in bounded memory."""

from collections.abc import Callable
from typing import Any

import numpy as np

from functa.explore.kept import Kept
from functa.fields.decoder import make_decoder
from functa.fields.field import Field

LARGEST_SCALE = 16
MOST_SIDE = 2048  # pixels of one decoded image
MOST_PIXELS = 1 << 22  # of all images of one answer
_BYTES = 1 << 30  # that a program may take, about
_TOGETHER = 16  # images
_PROGRAMS = 24  # that are kept


def image_bytes(field: Field, scale: int) -> int:
    """What decoding one image at `scale` takes, about: a few layers of every pixel, and its modulations where pixels
    have their own."""
    h, w, c = field.image_shape
    shape = (scale * h, scale * w)
    of_pixel = 3 * field.width + field.num_features + c
    if not field.has_cell_layout(shape):
        of_pixel += 2 * field.num_modulations
    return 4 * shape[0] * shape[1] * of_pixel


def largest_scale(field: Field) -> int:
    """The largest scale, at most 16, at which one image can be decoded."""
    side = max(field.image_shape[:2])
    scales = range(2, LARGEST_SCALE + 1)
    fit = [s for s in scales if s * side <= MOST_SIDE and image_bytes(field, s) <= _BYTES]
    return max(fit, default=1)


class Decoder:
    """Programs of one field for several scales."""

    def __init__(self, field: Field, params: Any):
        """params: of the task meta_learn, on the host."""
        self.field, self.largest_scale = field, largest_scale(field)
        self._params = params
        self._programs: Kept[Callable[[np.ndarray], np.ndarray]] = Kept(_PROGRAMS)

    def __call__(self, latents: np.ndarray, scale: int) -> np.ndarray:
        """Latents [n, i, j, d] -> images [n, scale h, scale w, c] float32 in [0, 1].

        Raises:
          ValueError: a scale that is too large, or too many pixels in all.
        """
        if not 1 <= scale <= self.largest_scale:
            raise ValueError(f"scale={scale} must be from 1 to {self.largest_scale}")
        h, w, _ = self.field.image_shape
        pixels = len(latents) * scale**2 * h * w
        if len(latents) > 1 and pixels > MOST_PIXELS:
            raise ValueError(
                f"{len(latents)} images of {scale * h}x{scale * w} pixels are {pixels:,} pixels, more than "
                f"{MOST_PIXELS:,}: ask for fewer, or for a smaller scale"
            )
        size = 1 if len(latents) == 1 else _TOGETHER
        size = max(1, min(size, _BYTES // image_bytes(self.field, scale)))
        program = self._programs.get(
            (scale, size),
            lambda: make_decoder(self.field, self._params, batch_size=size, scale=scale),
        )
        return program(latents)
