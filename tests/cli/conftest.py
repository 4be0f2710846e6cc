"""A run with a stub field and a functaset, for tests of commands that decode it."""

import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from functa.pipeline import load
from functa.training import checkpoint
from tests.support import functaset_sets

PARAMS = {"field": {"weight": np.float32([0.1, -0.2, 0.3])}, "inner_lrs": np.float32([1, 2, 3])}


class StubField:
    """Every cell has one gray level, a linear function of its latents."""

    image_shape = (8, 8, 1)

    def __call__(self, params, latents, shape=None):
        h, w = shape or self.image_shape[:2]
        gray = (0.5 + latents @ params["weight"])[..., None]
        return jnp.repeat(jnp.repeat(gray, h // 2, axis=1), w // 2, axis=2)


def reference_image(latents, shape):
    """The image [h, w] of the stub field in 0..255, one pixel at a time."""
    image = np.empty(shape, int)
    for row, column in np.ndindex(shape):
        cell = latents[row * 2 // shape[0], column * 2 // shape[1]].astype(np.float64)
        value = 0.5 + sum(a * b for a, b in zip(cell, PARAMS["field"]["weight"], strict=True))
        image[row, column] = round(min(max(float(value), 0), 1) * 255)
    return image


@pytest.fixture
def stub_run(tmp_path, monkeypatch):
    """(directory of a run, records by split)."""

    def load_field(workdir):
        if pathlib.Path(workdir) != tmp_path / "run":
            raise ValueError(f"{workdir} has no field")
        return StubField(), PARAMS

    monkeypatch.setattr(load, "load_field", load_field)
    directory = tmp_path / "run"
    digest = checkpoint.digest(PARAMS)
    splits = functaset_sets.write(directory / "functaset", dtype="float32", field_digest=digest)
    (directory / "config.json").write_text("{}")
    return directory, splits


@pytest.fixture
def other_field(stub_run, monkeypatch):
    """Replaces the field of the run; yields both digests."""
    params = {"field": PARAMS["field"]}
    monkeypatch.setattr(load, "load_field", lambda workdir: (StubField(), params))
    return checkpoint.digest(PARAMS), checkpoint.digest(params)
