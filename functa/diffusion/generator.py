"""A diffusion model of latents without its parameters: network, parameterization and sampler."""

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from functa.data.functaset.reader import Functaset
from functa.diffusion import interpolation, parameterization, solvers
from functa.diffusion.guidance import Guidance, guide, make_guidance
from functa.diffusion.parameterization import Denoiser, Network, Parameterization
from functa.diffusion.schedules import make_schedule
from functa.models.denoiser import make_denoiser
from functa.models.normalization import Normalization, make_normalization

PyTree = Any


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Sampling:
    """Noise levels, solver and guidance of a sampler.

    Attributes:
      settings: keyword arguments of `make_sampling`.
      sigmas: [steps + 1] float32, decreasing, the last one zero.
    """

    settings: dict[str, dict[str, Any]]
    sigmas: np.ndarray
    solver: solvers.Solver
    guidance: Guidance

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1


def make_sampling(
    *, schedule: Mapping[str, Any], solver: Mapping[str, Any], guidance: Mapping[str, Any]
) -> Sampling:
    """Returns the sampler with these settings: see `make_schedule`, `make_solver`, `make_guidance`.

    Raises:
      TypeError: an unknown or missing setting.
      ValueError: settings out of range.
    """
    return Sampling(
        settings={"schedule": dict(schedule), "solver": dict(solver), "guidance": dict(guidance)},
        sigmas=make_schedule(**schedule),
        solver=solvers.make_solver(**solver),
        guidance=make_guidance(**guidance),
    )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Generator:
    """A class-conditional diffusion model of latents.

    The methods take the parameters; they are pure, and the caller compiles them. Latents are those
    of the functaset, not normalized, unless stated otherwise.

    Attributes:
      network: (inputs [b, i, j, d], condition [b], labels [b]) -> [b, i, j, d].
      label_dropout: probability that training replaces a label by the null class. If it is 0, the
        null class is untrained.
    """

    network: nn.Module
    parameterization: Parameterization
    sampling: Sampling
    normalization: Normalization
    num_classes: int
    latent_shape: tuple[int, ...]
    label_dropout: float

    @property
    def null_class(self) -> int:
        """The label that stands for an unknown class."""
        return self.num_classes

    def init(self, key: jax.Array) -> PyTree:
        """Initial parameters of the network."""
        return init_network(self.network, self.latent_shape, key)

    def bind(self, params: PyTree) -> Network:
        """The network as a function of its inputs."""
        return lambda *inputs: cast(jax.Array, self.network.apply({"params": params}, *inputs))

    def denoiser(self, params: PyTree) -> Denoiser:
        """The denoiser of normalized latents, without guidance."""
        return parameterization.make_denoiser(self.parameterization, self.bind(params))

    def guided_denoiser(self, params: PyTree, *, guidance_scale: Any = None) -> Denoiser:
        """The denoiser of normalized latents with guidance.

        Args:
          guidance_scale: float or traced scalar; None: that of `sampling`.
        """
        guidance = self.sampling.guidance
        return guide(
            self.denoiser(params),
            null_class=self.null_class,
            scale=guidance.scale if guidance_scale is None else guidance_scale,
            interval=guidance.interval,
        )

    def sample(
        self,
        params: PyTree,
        key: jax.Array,
        numbers: jax.Array,
        labels: jax.Array,
        *,
        guidance_scale: Any = None,
        keep_trajectory: bool = False,
    ) -> solvers.Samples:
        """Samples latents.

        Args:
          numbers: [b] int32; sample n of a key is the same in every batch.
          labels: [b] int32 in [0, num_classes].
          guidance_scale: float or traced scalar; None: that of `sampling`.
        """
        samples = solvers.sample(
            self.guided_denoiser(params, guidance_scale=guidance_scale),
            self.sampling.solver,
            self.sampling.sigmas,
            key,
            numbers=numbers,
            labels=labels,
            latent_shape=self.latent_shape,
            keep_trajectory=keep_trajectory,
        )
        restore = self.normalization.restore
        return solvers.Samples(restore(samples.latents), jax.vmap(restore)(samples.trajectory))

    def initial_noise(self, key: jax.Array, numbers: jax.Array) -> jax.Array:
        """Noisy normalized latents [b, i, j, d] that `sample` starts from."""
        noise = solvers.sample_noise(key, numbers=numbers, step=0, latent_shape=self.latent_shape)
        return self.sampling.sigmas[0] * noise

    def invert(self, params: PyTree, latents: jax.Array, labels: jax.Array) -> jax.Array:
        """Noisy normalized latents [b, i, j, d] from which sampling leads to `latents`."""
        normalized = self.normalization.normalize(latents)
        denoise = self.guided_denoiser(params)
        return interpolation.invert(denoise, self.sampling.sigmas, normalized, labels)

    def interpolate(
        self, params: PyTree, noisy: jax.Array, labels: jax.Array, *, count: int
    ) -> jax.Array:
        """Latents [count, i, j, d] from one endpoint to the other, both included.

        Args:
          noisy: endpoints [2, i, j, d] of `initial_noise` or `invert`; labels: [2] int32.
        """
        denoise, sampling = self.guided_denoiser(params), self.sampling
        latents = interpolation.interpolate(
            denoise, sampling.solver, sampling.sigmas, noisy, labels, count=count
        )
        return self.normalization.restore(latents)

    def with_sampling(
        self,
        *,
        steps: int | None = None,
        solver: str | None = None,
        guidance_scale: float | None = None,
    ) -> "Generator":
        """Returns a copy with other sampling settings; None keeps the setting.

        Args:
          solver: a solver without settings, or the name of the present one, which keeps its settings.
        Raises:
          ValueError: settings out of range, or guidance of a generator without null class.
          TypeError: the solver needs settings.
        """
        settings = copy.deepcopy(self.sampling.settings)
        if steps is not None:
            settings["schedule"]["steps"] = steps
        if guidance_scale is not None:
            settings["guidance"]["scale"] = guidance_scale
        if solver is not None and solver != settings["solver"]["name"]:
            settings["solver"] = {"name": solver}
        sampling = make_sampling(**settings)
        if sampling.guidance.scale != 1 and self.label_dropout == 0:
            raise ValueError(
                f"guidance scale {sampling.guidance.scale:g} needs a generator that was trained with "
                "generate.label_dropout above 0; use 1"
            )
        return dataclasses.replace(self, sampling=sampling)


def init_network(network: nn.Module, latent_shape: tuple[int, ...], key: jax.Array) -> PyTree:
    """Initial parameters of a denoiser for latents [b, *latent_shape]."""
    latents = jnp.zeros((1, *latent_shape), jnp.float32)
    return network.init(key, latents, jnp.zeros(1), jnp.zeros(1, jnp.int32))["params"]


def build_generator(settings: ConfigDict, functaset: Functaset, *, num_classes: int) -> Generator:
    """Builds the generator that the section `generate` of a config describes.

    Args:
      functaset: gives the shape of the latents and the statistics that normalize them.
    Raises:
      TypeError: an unknown or missing setting.
      ValueError: settings out of range, or statistics that cannot normalize.
    """
    plain = settings.to_dict()
    return Generator(
        network=make_denoiser(num_classes=num_classes, **plain["model"]),
        parameterization=parameterization.make_parameterization(**plain["parameterization"]),
        sampling=make_sampling(**{key: plain[key] for key in ("schedule", "solver", "guidance")}),
        normalization=make_normalization(functaset, kind=settings.normalization),
        num_classes=num_classes,
        latent_shape=tuple(functaset.manifest.latent_shape),
        label_dropout=settings.label_dropout,
    )
