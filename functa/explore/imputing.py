"""Images of which a drawn part is hidden, filled in by the generator and without it."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from functa.diffusion import observation as observation_lib
from functa.diffusion.inpainter import Inpainter
from functa.diffusion.observation import Degradation, Observation
from functa.diffusion.trained_generator import TrainedGenerator
from functa.explore.kept import Kept
from functa.fields import psnr as metrics
from functa.runtime.config import range_errors

MOST_DRAWS = 16
MOST_STEPS = 100
LARGEST_SEED = 10**6
_KIND = Degradation("all", 1, 0.0)  # pixels as they are; which ones, the mask says
_IMPUTERS = 3  # that are kept: one for each number of steps


class Imputed(NamedTuple):
    """What was made of one image, all float32 in [0, 1] with seen pixels in their places.

    Attributes:
      seen: [h, w, c + alpha] with alpha 0 where pixels are hidden; c is 3.
      without: [h, w, c], without prior; draws: [n, h, w, c], with; mean: [h, w, c], of the draws.
      psnr: of hidden pixels, dB: without, draw (the first one), mean.
    """

    seen: np.ndarray
    without: np.ndarray
    draws: np.ndarray
    mean: np.ndarray
    psnr: dict[str, float]


class Imputing:
    """A generator and the programs that fill in."""

    def __init__(self, generator: TrainedGenerator, say):
        """say: is told what is going on."""
        self._generator, self._say = generator, say
        self._imputers: Kept[Inpainter] = Kept(_IMPUTERS)

    def impute(
        self, image: np.ndarray, hidden: np.ndarray, *, draws: int, steps: int, seed: int
    ) -> Imputed:
        """Fills in what is hidden.

        Args:
          image: [h, w, c] uint8.
          hidden: [h, w] bool.
          draws: that are taken; steps: noise levels; seed: of the draws.
        Raises:
          ValueError: a mask of another shape or that hides nothing, a number out of range, or a generator that
            knows no image of unknown class.
        """
        h, w, c = image.shape
        problems = range_errors(
            {
                "draws": (draws, 1, MOST_DRAWS),
                "steps": (steps, 1, MOST_STEPS),
                "seed": (seed, 0, LARGEST_SEED),
            }
        )
        if hidden.shape != (h, w):
            problems.append(f"the mask has {hidden.shape} pixels, the image {(h, w)}")
        elif not hidden.any():
            problems.append("nothing is hidden: paint over some pixels first")
        if problems:
            raise ValueError("; ".join(problems))
        self._say("measuring the prior")
        imputer = self._imputers.get(
            steps,
            lambda: Inpainter(self._generator, _KIND, steps=steps, seed=0),
        )
        images = image[None].astype(np.float32) / np.float32(255)
        mask = np.broadcast_to(~hidden[None, :, :, None], images.shape).astype(np.float32)
        observation = Observation(jnp.asarray(mask), jnp.asarray(mask * images))
        self._say("fitting what is seen, without prior")
        without = imputer.reconstruct_without_prior(observation)
        self._say(f"drawing {draws} images that could have been seen so")
        # A draw is a function of the name: other names, other draws, the same program.
        drawn = imputer.sample(observation, image_ids=np.asarray([seed]), count=draws)
        made = {"without": without, "draw": drawn[:, 0], "mean": drawn.mean(axis=1)}
        filled = {
            name: observation_lib.insert_observed(_KIND, observation, value)
            for name, value in made.items()
        }
        psnr = {
            name: float(
                metrics.psnr(observation_lib.unobserved_mse(_KIND, observation, value, images))[0]
            )
            for name, value in filled.items()
        }
        all_drawn = np.where(mask == 1, images, drawn[0])
        colours = np.broadcast_to(images[0], (h, w, 3))
        seen = np.concatenate([colours, 1 - hidden[..., None].astype(np.float32)], axis=-1)
        return Imputed(seen, filled["without"][0], all_drawn, filled["mean"][0], psnr)
