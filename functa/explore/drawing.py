"""Samples and strips of a generator, by programs that are compiled once for all seeds."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from functa.diffusion.trained_generator import TrainedGenerator
from functa.explore.kept import Kept
from functa.runtime.config import range_errors

MOST_SAMPLES = 100
FEWEST_ON_A_STRIP, MOST_ON_A_STRIP = 3, 33
MOST_STEPS = 200
LARGEST_GUIDANCE = 20.0
LARGEST_SEED = 2**31 - 1
_BLOCK = 10  # samples drawn at a time
_PROGRAMS = 12  # that are kept
_LATENTS = 400  # samples that are kept

Say = Callable[[str], None]


class Settings(NamedTuple):
    """How noise becomes latents; solver: one of `Drawing.solvers`."""

    guidance: float
    steps: int
    solver: str


class Sample(NamedTuple):
    """Sample `number` of a seed; label: num_classes for any class."""

    seed: int
    number: int
    label: int
    settings: Settings


class Encoded(NamedTuple):
    """Latents [i, j, d] float32 that were not drawn; label: num_classes for any class."""

    latents: np.ndarray
    label: int


class Drawing:
    """A generator, its programs and the latents it drew last.

    Attributes:
      solvers: names; those that need no settings of their own, and the run's.
      usual: the run's Settings; most_steps, largest_guidance: that may be asked for.
    """

    def __init__(self, generator: TrainedGenerator, say: Say):
        """say: is told what is going on."""
        self._generator, self._say = generator, say
        sampling = generator.generator.sampling
        own = sampling.settings["solver"]["name"]
        self.solvers = tuple(dict.fromkeys(["euler", "heun", "dpmpp_2m", own]))
        self.usual = Settings(float(sampling.guidance.scale), sampling.steps, own)
        self.num_classes = generator.generator.num_classes
        # What the run itself does may be asked for.
        self.most_steps = max(MOST_STEPS, self.usual.steps)
        self.largest_guidance = max(LARGEST_GUIDANCE, self.usual.guidance)
        self._programs: Kept[TrainedGenerator] = Kept(_PROGRAMS)
        self._latents: Kept[np.ndarray] = Kept(_LATENTS)

    def with_settings(self, settings: Settings) -> TrainedGenerator:
        """The generator with these settings.

        Raises:
          ValueError: impossible ones, or such as this generator was not trained for.
        """
        problems = range_errors(
            {
                "guidance": (settings.guidance, 0, self.largest_guidance),
                "steps": (settings.steps, 1, self.most_steps),
            }
        )
        if settings.solver not in self.solvers:
            problems.append(f"solver={settings.solver!r}: known are {', '.join(self.solvers)}")
        if problems:
            raise ValueError("; ".join(problems))
        return self._programs.get(
            settings,
            lambda: self._generator.with_sampling(
                guidance_scale=settings.guidance, steps=settings.steps, solver=settings.solver
            ),
        )

    def check(self, sample: Sample) -> None:
        """Raises ValueError for a sample that cannot be drawn."""
        problems = range_errors(
            {
                "seed": (sample.seed, 0, LARGEST_SEED),
                "number": (sample.number, 0, LARGEST_SEED),
                "class": (sample.label, 0, self.num_classes),
            }
        )
        dropout = self._generator.generator.label_dropout
        if sample.label == self.num_classes and not dropout:
            problems.append(
                "this generator knows no images of any class: it was trained with generate.label_dropout=0"
            )
        if problems:
            raise ValueError("; ".join(problems))

    def draw(self, asked: list[Sample]) -> np.ndarray:
        """Latents [n, i, j, d] float32; those that were drawn lately are not drawn again.

        Args:
          asked: of one seed and of the same settings.
        Raises:
          ValueError: no samples, too many, or of a kind that cannot be drawn.
        """
        if not 1 <= len(asked) <= MOST_SAMPLES:
            raise ValueError(f"count={len(asked)} must be from 1 to {MOST_SAMPLES}")
        for sample in asked:
            self.check(sample)
        drawn = {one: self._latents.find(one) for one in asked}
        missing = [one for one, latents in drawn.items() if latents is None]
        if missing:
            generator = self.with_settings(missing[0].settings)
            self._say(f"drawing {len(missing)} samples")
            latents = generator.sample(
                seed=missing[0].seed,
                numbers=np.asarray([one.number for one in missing], np.int32),
                labels=np.asarray([one.label for one in missing], np.int32),
                batch_size=_BLOCK,
            )
            for one, own in zip(missing, latents, strict=True):
                drawn[one] = own
                self._latents.put(one, own)
        return np.stack([drawn[one] for one in asked])  # type: ignore[misc]

    def strip(
        self, ends: tuple[Sample | Encoded, Sample | Encoded], *, count: int, settings: Settings
    ) -> np.ndarray:
        """Latents [count, i, j, d] from end to end; samples are drawn anew with these settings.

        Raises:
          ValueError: what cannot be drawn, or too few or too many on the strip.
        """
        if problems := range_errors({"count": (count, FEWEST_ON_A_STRIP, MOST_ON_A_STRIP)}):
            raise ValueError(problems[0])
        generator = self.with_settings(settings)
        noisy = jnp.concatenate([self._noise(end, generator) for end in ends])
        labels = np.asarray([end.label for end in ends], np.int32)
        self._say(f"drawing {count} images from one end to the other")
        return generator.interpolate(noisy, labels, count=count)

    def _noise(self, end: Sample | Encoded, generator: TrainedGenerator) -> jax.Array:
        if isinstance(end, Sample):
            self.check(end)
            numbers = np.asarray([end.number], np.int32)
            return generator.initial_noise(seed=end.seed, numbers=numbers)
        self._say("looking for the noise of an image")
        return generator.invert(end.latents[None], np.asarray([end.label], np.int32))
