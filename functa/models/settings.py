"""Construction of networks by name, and the range checks that their settings share."""

from collections.abc import Mapping
from typing import Any

from flax import linen as nn

DTYPES = ("float32", "bfloat16")
GROUPS = 8  # of the group norms of the U-Net
_POSITIVE = ("num_classes", "patch", "width", "depth", "heads", "mlp_width")
_FRACTIONS = ("dropout", "drop_path")


def make_network(
    networks: Mapping[str, type[nn.Module]],
    name: str,
    settings: Mapping[str, Any],
) -> nn.Module:
    """Returns the network `name` of a table with these settings.

    Raises:
      TypeError: an unknown or missing setting.
      ValueError: an unknown name or settings out of range; the message lists all of them.
    """
    if name not in networks:
        raise ValueError(f"name={name!r} must be one of {', '.join(networks)}")
    network = networks[name](**settings)
    if errors := _setting_errors(name, settings):
        raise ValueError("; ".join(errors))
    return network


def _setting_errors(name: str, settings: Mapping[str, Any]) -> list[str]:
    dtype = settings.get("dtype", DTYPES[0])
    errors = [] if dtype in DTYPES else [f"dtype={dtype!r} must be one of {', '.join(DTYPES)}"]
    for key in _POSITIVE:
        if key in settings and settings[key] < 1:
            errors.append(f"{key}={settings[key]} must be at least 1")
    for key in _FRACTIONS:
        if key in settings and not 0 <= settings[key] < 1:
            errors.append(f"{key}={settings[key]} must be in [0, 1)")
    widths, depths = settings.get("widths", (1,)), settings.get("depths", (1,))
    if not widths or len(widths) != len(depths):
        errors.append(f"widths={widths} and depths={depths} need one entry per resolution each")
    if not all(isinstance(entry, int) and entry > 0 for entry in (*widths, *depths)):
        errors.append(f"widths={widths} and depths={depths} must be positive integers")
    elif "heads" in settings and widths:
        width = settings.get("width", widths[-1])
        if width % max(settings["heads"], 1):
            errors.append(f"heads={settings['heads']} must divide the width {width}")
    if name == "dit" and settings["width"] % 4:
        errors.append(f"width={settings['width']} must be a multiple of 4, for position embeddings")
    if name == "unet" and any(width % GROUPS for width in widths):
        errors.append(f"widths={widths} must be multiples of {GROUPS}, the groups of their norms")
    return errors
