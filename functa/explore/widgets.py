"""Gradio components and conversions that the panels of the page share."""

import functools
from collections.abc import Callable
from typing import Any

import gradio as gr
import numpy as np

from functa.runtime import image_io
from functa.runtime.image_io import to_uint8

HIDDEN_COLOR = (217, 112, 43)
_LATENT_SIDE = 64  # pixels of a channel


def to_picture(image: np.ndarray) -> np.ndarray:
    """[h, w, 1 or 3] uint8, or float in [0, 1] -> [h, w, 3] uint8."""
    return np.broadcast_to(to_uint8(image), (*image.shape[:2], 3))


def hidden_pixels(drawing: dict[str, Any], shape: tuple[int, int]) -> np.ndarray:
    """Pixels [h, w] bool that are painted over by half or more in a value of the ImageEditor."""
    h, w = shape
    painted = np.zeros(shape)
    for layer in drawing["layers"]:
        alpha = layer[..., 3] / 255
        painted += alpha.reshape(h, len(alpha) // h, w, -1).mean((1, 3))
    return painted >= 0.5


def make_masks(h: int, w: int) -> dict[str, Callable[[], np.ndarray]]:
    """Functions that make the masks [h, w] bool of the buttons; true pixels are hidden."""
    return {
        "Clear": lambda: np.zeros((h, w), bool),
        "Left half": lambda: np.broadcast_to(np.arange(w) < w // 2, (h, w)),
        "Random 90 %": lambda: (
            np.random.default_rng().permutation(h * w).reshape(h, w) < round(0.9 * h * w)
        ),
    }


def on(listen: Callable, call: Callable, inputs: list, outputs: list) -> Any:
    """Adds an event. Events are answered one at a time; user errors appear on the page.

    Args:
      listen: an event listener of Gradio, such as button.click.
    """

    @functools.wraps(call)
    def answer(*args):
        try:
            return call(*args)
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from error

    limits: dict[str, Any] = dict(concurrency_id="session", concurrency_limit=1)
    return listen(answer, inputs, outputs, **limits, api_visibility="private")


def gallery(**settings: Any) -> gr.Gallery:
    fixed: dict[str, Any] = dict(format="png", object_fit="contain", buttons=[], show_label=False)
    return gr.Gallery(**fixed, **settings, interactive=False)


def image(**settings: Any) -> gr.Image:
    return gr.Image(format="png", image_mode=None, interactive=False, buttons=[], **settings)


def can_work(*problems: str) -> bool:
    """Shows the problems that prevent a panel from working."""
    for problem in filter(None, problems):
        gr.Markdown(problem)
    return not any(problems)


def latent_picture(latents: np.ndarray) -> np.ndarray:
    """Latents [i, j, d] as a sheet [h, w, 3] uint8 of their channels: red above zero, blue below."""
    channels = np.moveaxis(latents, -1, 0)
    colors = image_io.diverging(channels, np.abs(latents).max()) / np.float32(255)
    alpha = colors[..., 3:]
    factor = max(1, _LATENT_SIDE // max(channels.shape[1:]))
    tiles = image_io.enlarge(colors[..., :3] * alpha + 1 - alpha, factor)
    return to_uint8(image_io.sheet(tiles, gap=4))
