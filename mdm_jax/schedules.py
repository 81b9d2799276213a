r"""Noise schedules: the probability alpha(t) that a token survives to time t, in closed form.

Time runs from t = 0 (clean) to t = 1 (pure noise). Every schedule gives

* ``alpha(t)``: survival probability, decreasing;
* ``alpha_prime(t)``: its derivative;
* ``noise_rate(t)``: 1 - alpha(t), written out rather than subtracted, because the subtraction
  loses all digits where t is small;
* ``weight(t)``: -alpha'(t) / (1 - alpha(t)), the weight of the masked ELBO (MDLM eq. 10);
* ``sigma(t)``: -log alpha(t), what the published networks are conditioned on;
* ``inverse(alpha)``: the t at which the survival probability is alpha;
* ``inverse_noise_rate(noise)``: the t at which 1 - alpha is `noise`, exact near t = 0.

A schedule is a frozen dataclass: printable, comparable, hashable and static under `jax.jit`, so an
equal schedule made a second time does not retrace. All methods broadcast over t and keep its
floating dtype.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

HALF_PI = 0.5 * math.pi


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Base of all schedules; a subclass gives `noise_rate`, its inverse and `alpha_prime`.

    Examples:
        >>> Linear() == Linear()
        True
        >>> float(LogLinear(eps=0.5).alpha(jnp.float32(1.0)))
        0.5
    """

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        jax.tree_util.register_static(cls)

    def noise_rate(self, t: jax.Array) -> jax.Array:
        """Returns 1 - alpha(t) without cancellation; float, shaped like `t`."""
        raise TypeError(f"{type(self).__name__} must define noise_rate")

    def alpha_prime(self, t: jax.Array) -> jax.Array:
        """Returns d alpha / dt (negative); float, shaped like `t`."""
        raise TypeError(f"{type(self).__name__} must define alpha_prime")

    def inverse_noise_rate(self, noise: jax.Array) -> jax.Array:
        """Returns the time at which 1 - alpha is `noise`, without forming alpha."""
        raise TypeError(f"{type(self).__name__} must define inverse_noise_rate")

    def inverse(self, alpha: jax.Array) -> jax.Array:
        """Returns the time at which the survival probability is `alpha`."""
        return self.inverse_noise_rate(1.0 - alpha)

    def alpha(self, t: jax.Array) -> jax.Array:
        """Returns the survival probability; float, shaped like `t`."""
        return 1.0 - self.noise_rate(t)

    def sigma(self, t: jax.Array) -> jax.Array:
        """Returns -log alpha(t), the total noise; float, shaped like `t`."""
        return -jnp.log1p(-self.noise_rate(t))

    def weight(self, t: jax.Array) -> jax.Array:
        """Returns -alpha'(t) / (1 - alpha(t)); float, shaped like `t`, infinite at t = 0."""
        return -self.alpha_prime(t) / self.noise_rate(t)


@dataclasses.dataclass(frozen=True)
class LogLinear(Schedule):
    """alpha(t) = 1 - (1 - eps) t, so that the weight is exactly 1 / t (MDLM, Duo, SEDD).

    "Log-linear" because sigma(t) = -log(1 - (1 - eps) t). A share `eps` of the tokens survives at
    t = 1, which keeps sigma finite there.
    """

    eps: float = 1e-3

    def __post_init__(self):
        _check_share("LogLinear", "eps", self.eps)

    def noise_rate(self, t):
        """Returns (1 - eps) t."""
        return (1.0 - self.eps) * t

    def alpha_prime(self, t):
        """Returns -(1 - eps)."""
        return jnp.full_like(self.noise_rate(t), -(1.0 - self.eps))

    def weight(self, t):
        """Returns 1 / t, exactly."""
        return 1.0 / jnp.asarray(t)

    def inverse_noise_rate(self, noise):
        """Returns noise / (1 - eps)."""
        return noise / (1.0 - self.eps)


@dataclasses.dataclass(frozen=True)
class Linear(Schedule):
    """alpha(t) = 1 - t: the log-linear schedule with nothing surviving at t = 1 (MD4, SMDM)."""

    def noise_rate(self, t):
        """Returns t."""
        return jnp.asarray(t)

    def alpha_prime(self, t):
        """Returns -1."""
        return jnp.full_like(1.0 * self.noise_rate(t), -1.0)

    def inverse_noise_rate(self, noise):
        """Returns noise."""
        return jnp.asarray(noise)


@dataclasses.dataclass(frozen=True)
class Polynomial(Schedule):
    """alpha(t) = 1 - t^power (MD4)."""

    power: float

    def __post_init__(self):
        if not self.power > 0:
            raise ValueError(f"Polynomial power={self.power}: expected a positive number")

    def noise_rate(self, t):
        """Returns t^power."""
        return t**self.power

    def alpha_prime(self, t):
        """Returns -power t^(power - 1)."""
        return -self.power * t ** (self.power - 1.0)

    def weight(self, t):
        """Returns power / t, exactly."""
        return self.power / jnp.asarray(t)

    def inverse_noise_rate(self, noise):
        """Returns noise^(1 / power)."""
        return noise ** (1.0 / self.power)


@dataclasses.dataclass(frozen=True)
class Cosine(Schedule):
    """alpha(t) = eps + (1 - eps) cos(pi t / 2) (MDLM's `cosine`).

    MaskGIT, MD4 and Duo call another curve cosine: see `MaskGITCosine`.
    """

    eps: float = 1e-3

    def __post_init__(self):
        _check_share("Cosine", "eps", self.eps)

    def noise_rate(self, t):
        """Returns (1 - eps) 2 sin^2(pi t / 4), the stable form of (1 - eps)(1 - cos(pi t / 2))."""
        return (1.0 - self.eps) * 2.0 * jnp.sin(0.5 * HALF_PI * t) ** 2

    def alpha_prime(self, t):
        """Returns -(1 - eps) (pi / 2) sin(pi t / 2)."""
        return -(1.0 - self.eps) * HALF_PI * jnp.sin(HALF_PI * t)

    def inverse_noise_rate(self, noise):
        """Returns (4 / pi) arcsin(sqrt(noise / (2 (1 - eps))))."""
        half = jnp.sqrt(noise / (2.0 * (1.0 - self.eps)))
        return jnp.arcsin(jnp.clip(half, 0.0, 1.0)) / (0.5 * HALF_PI)


@dataclasses.dataclass(frozen=True)
class CosineSquared(Schedule):
    """alpha(t) = eps + (1 - eps) cos^2(pi t / 2) (MDLM's `cosinesqr`)."""

    eps: float = 1e-3

    def __post_init__(self):
        _check_share("CosineSquared", "eps", self.eps)

    def noise_rate(self, t):
        """Returns (1 - eps) sin^2(pi t / 2)."""
        return (1.0 - self.eps) * jnp.sin(HALF_PI * t) ** 2

    def alpha_prime(self, t):
        """Returns -(1 - eps) (pi / 2) sin(pi t)."""
        return -(1.0 - self.eps) * HALF_PI * jnp.sin(2.0 * HALF_PI * t)

    def inverse_noise_rate(self, noise):
        """Returns (2 / pi) arcsin(sqrt(noise / (1 - eps)))."""
        root = jnp.sqrt(noise / (1.0 - self.eps))
        return jnp.arcsin(jnp.clip(root, 0.0, 1.0)) / HALF_PI


@dataclasses.dataclass(frozen=True)
class MaskGITCosine(Schedule):
    """alpha(t) = 1 - sin(pi (1 - eps) t / 2): the noised share follows MaskGIT's cosine (Duo, MD4).

    In MaskGIT's reversed clock r = 1 - t the share of masks is cos(pi r / 2), hence the name. The
    derivative here carries the chain-rule factor (1 - eps) that Duo's code leaves out.
    """

    eps: float = 1e-3

    def __post_init__(self):
        _check_share("MaskGITCosine", "eps", self.eps)

    def noise_rate(self, t):
        """Returns sin(pi (1 - eps) t / 2)."""
        return jnp.sin(HALF_PI * (1.0 - self.eps) * t)

    def alpha(self, t):
        """Returns 2 sin^2(pi (1 - (1 - eps) t) / 4), which keeps its digits near t = 1."""
        return 2.0 * jnp.sin(0.5 * HALF_PI * (1.0 - (1.0 - self.eps) * t)) ** 2

    def sigma(self, t):
        """Returns -log alpha(t)."""
        return -jnp.log(self.alpha(t))

    def alpha_prime(self, t):
        """Returns -(pi / 2) (1 - eps) cos(pi (1 - eps) t / 2)."""
        scale = HALF_PI * (1.0 - self.eps)
        return -scale * jnp.cos(scale * t)

    def inverse_noise_rate(self, noise):
        """Returns (2 / pi) arcsin(noise) / (1 - eps)."""
        return jnp.arcsin(jnp.clip(noise, 0.0, 1.0)) / (HALF_PI * (1.0 - self.eps))


@dataclasses.dataclass(frozen=True)
class SigmaSchedule(Schedule):
    """Base of the schedules given by their total noise sigma: alpha(t) = exp(-sigma(t))."""

    sigma_min: float
    sigma_max: float

    def __post_init__(self):
        if not 0 < self.sigma_min < self.sigma_max:
            raise ValueError(
                f"{type(self).__name__} sigma_min={self.sigma_min}, sigma_max={self.sigma_max}: "
                "expected 0 < sigma_min < sigma_max"
            )

    def sigma_prime(self, t: jax.Array) -> jax.Array:
        """Returns d sigma / dt; float, shaped like `t`."""
        raise TypeError(f"{type(self).__name__} must define sigma_prime")

    def inverse_sigma(self, sigma: jax.Array) -> jax.Array:
        """Returns the time at which the total noise is `sigma`."""
        raise TypeError(f"{type(self).__name__} must define inverse_sigma")

    def inverse_noise_rate(self, noise):
        """Returns the time at which sigma is -log(1 - noise)."""
        return self.inverse_sigma(-jnp.log1p(-noise))

    def inverse(self, alpha):
        """Returns the time at which sigma is -log(alpha)."""
        return self.inverse_sigma(-jnp.log(alpha))

    def alpha(self, t):
        """Returns exp(-sigma(t))."""
        return jnp.exp(-self.sigma(t))

    def noise_rate(self, t):
        """Returns -expm1(-sigma(t))."""
        return -jnp.expm1(-self.sigma(t))

    def alpha_prime(self, t):
        """Returns -sigma'(t) exp(-sigma(t))."""
        return -self.sigma_prime(t) * self.alpha(t)

    def weight(self, t):
        """Returns sigma'(t) / (exp(sigma(t)) - 1)."""
        return self.sigma_prime(t) / jnp.expm1(self.sigma(t))


@dataclasses.dataclass(frozen=True)
class Geometric(SigmaSchedule):
    """sigma(t) = sigma_min^(1 - t) sigma_max^t (SEDD, D3PM-style baselines)."""

    def sigma(self, t):
        """Returns sigma_min^(1 - t) sigma_max^t."""
        return self.sigma_min ** (1.0 - t) * self.sigma_max**t

    def sigma_prime(self, t):
        """Returns sigma(t) log(sigma_max / sigma_min)."""
        return self.sigma(t) * math.log(self.sigma_max / self.sigma_min)

    def inverse_sigma(self, sigma):
        """Returns log(sigma / sigma_min) / log(sigma_max / sigma_min)."""
        return jnp.log(sigma / self.sigma_min) / math.log(self.sigma_max / self.sigma_min)


@dataclasses.dataclass(frozen=True)
class LinearSigma(SigmaSchedule):
    """sigma(t) = sigma_min + t (sigma_max - sigma_min) (MDLM's `linear`)."""

    def sigma(self, t):
        """Returns sigma_min + t (sigma_max - sigma_min)."""
        return self.sigma_min + t * (self.sigma_max - self.sigma_min)

    def sigma_prime(self, t):
        """Returns sigma_max - sigma_min."""
        return jnp.full_like(1.0 * t, self.sigma_max - self.sigma_min)

    def inverse_sigma(self, sigma):
        """Returns (sigma - sigma_min) / (sigma_max - sigma_min)."""
        return (sigma - self.sigma_min) / (self.sigma_max - self.sigma_min)


def _check_share(schedule: str, name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ValueError(f"{schedule} {name}={value}: expected a number in [0, 1)")
