"""Samples and strips of a generator, by programs that are compiled once for all seeds."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from functa.diffusion import interpolation, solvers
from functa.diffusion import sample as samples
from functa.explore.kept import Kept
from functa.pipeline.load import Generator
from functa.runtime import config as config_lib
from functa.runtime import rng
from functa.runtime.config import range_errors
from functa.training.tasks import generation

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

    def __init__(self, generator: Generator, say: Say):
        """say: is told what is going on."""
        self._generator, self._say = generator, say
        settings = generator.config.generate
        own = settings.solver.name
        self.solvers = tuple(dict.fromkeys(["euler", "heun", "dpmpp_2m", own]))
        self.usual = Settings(float(settings.guidance.scale), int(settings.schedule.steps), own)
        self.num_classes = int(generator.config.data.num_classes)
        # What the run itself does may be asked for.
        self.most_steps = max(MOST_STEPS, self.usual.steps)
        self.largest_guidance = max(LARGEST_GUIDANCE, self.usual.guidance)
        self._programs: Kept[Callable[..., jax.Array]] = Kept(_PROGRAMS)
        self._latents: Kept[np.ndarray] = Kept(_LATENTS)

    def config(self, settings: Settings) -> ConfigDict:
        """The run's config with these settings.

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
        config = config_lib.from_dict(config_lib.to_dict(self._generator.config))
        config.generate.guidance.scale = settings.guidance
        config.generate.schedule.steps = settings.steps
        if settings.solver != self.usual.solver:
            config.generate.solver = ConfigDict({"name": settings.solver})
        if settings != self.usual and (problems := generation.check(config)):
            raise ValueError("; ".join(problems))
        return config

    def check(self, sample: Sample) -> None:
        """Raises ValueError for a sample that cannot be drawn."""
        problems = range_errors(
            {
                "seed": (sample.seed, 0, LARGEST_SEED),
                "number": (sample.number, 0, LARGEST_SEED),
                "class": (sample.label, 0, self.num_classes),
            }
        )
        dropout = self._generator.config.generate.label_dropout
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
            settings = missing[0].settings
            program = self._programs.get(("draw", settings), lambda: self._make_sampler(settings))
            key = rng.stream_key(missing[0].seed, "sample")
        for start in range(0, len(missing), _BLOCK):
            some = missing[start : start + _BLOCK]
            self._say(f"drawing samples {start + 1} to {start + len(some)} of {len(missing)}")
            # The last block is filled up: one program for all, and a sample has the same bits in each.
            rows = [min(row, len(some) - 1) for row in range(_BLOCK)]
            numbers = np.asarray([some[row].number for row in rows], np.int32)
            labels = np.asarray([some[row].label for row in rows], np.int32)
            latents = np.asarray(program(self._generator.params, key, numbers, labels))
            for one, own in zip(some, latents, strict=False):
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
        config = self.config(settings)
        noisy = jnp.concatenate([self._noise(end, config, settings) for end in ends])
        labels = jnp.asarray([end.label for end in ends], jnp.int32)
        program = self._programs.get(
            ("strip", settings, count),
            lambda: samples.make_strip(self._generator, config, count=count),
        )
        self._say(f"drawing {count} images from one end to the other")
        return np.asarray(program(self._generator.params, interpolation.Ends(noisy, labels)))

    def _noise(self, end: Sample | Encoded, config: ConfigDict, settings: Settings) -> jax.Array:
        if isinstance(end, Sample):
            self.check(end)
            numbers = np.asarray([end.number], np.int32)
            return samples.first_noise(config, seed=end.seed, numbers=numbers)
        program = self._programs.get(
            ("noise", settings), lambda: samples.make_noise_of(self._generator, config)
        )
        self._say("looking for the noise of an image")
        labels = np.asarray([end.label], np.int32)
        return program(self._generator.params, end.latents[None], labels)

    def _make_sampler(self, settings: Settings) -> Callable[..., jax.Array]:
        sampler = generation.make_keyed_sampler(
            self.config(settings), self._generator.normalization, keep_trajectory=False
        )

        def draw(*inputs) -> jax.Array:
            drawn: solvers.Samples = sampler(*inputs)
            return drawn.latents

        return jax.jit(draw)
