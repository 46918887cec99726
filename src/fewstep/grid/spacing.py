r"""Where n steps fall between t_max and t_min: equal steps in some scale, or a fixed curve.

In terms of log-SNR lambda, rho = e^-lambda (sigma/alpha, "sigma" in most code) and flow time tau = 1/(1 + e^lambda)
(sigma/(alpha + sigma), which is Flow's own time). x = i/n, i = 0..n, is the fraction of the steps taken. Curves with
values from 1 to 0 are stretched over a clock so that they start at t_max and end at t_min.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.process.base import Process
from fewstep.process.clock import clock as clock_of
from fewstep.words import inside, typed

__all__ = [
    "Grid", "beta", "beta_quantile", "bridge", "dynamic_mu", "exponential", "flow_shift", "karras", "kl_optimal",
    "linear_quadratic", "log_snr", "logistic", "power", "sgm_uniform", "to_zero", "uniform"
]  # fmt: skip

Grid = Callable[[Process, int], Tensor]


def uniform(process: Process, steps: int) -> Tensor:
    """Equal steps in time."""
    return power(process, steps, exponent=1.0)


def power(process: Process, steps: int, *, exponent: float = 2.0) -> Tensor:
    """Equal steps in t^(1/exponent): exponent 2 is the quadratic grid, denser near data."""
    ends = (process.t_max ** (1 / exponent), process.t_min ** (1 / exponent))
    return exact_ends(process, torch.linspace(*ends, steps + 1, dtype=torch.float64) ** exponent)


def log_snr(process: Process, steps: int) -> Tensor:
    """Equal steps in log-SNR."""
    lam = torch.linspace(*finite_range(process), steps + 1, dtype=torch.float64)
    return exact_ends(process, process.inverse_log_snr(lam))


def bridge(process: Process, steps: int) -> Tensor:
    """Equal steps in log-SNR up to 4.5 (1 - 7/(3 n + 3)) with n steps, the last of which leads from there to the end.

    The default on bridges, for data of a deviation near 0.5 given y; chosen with `benchmarks/bridges.py`. Where a
    process's range ends before that it is log-snr.
    """
    low, last = finite_range(process)[0], 4.5 * (1 - 7 / (3 * steps + 3))
    if steps == 1 or not low < last < float(process.log_snr(process.t_min)):
        return log_snr(process, steps)
    lam = torch.linspace(low, last, steps, dtype=torch.float64)
    return exact_ends(process, torch.cat([process.inverse_log_snr(lam), lam.new_zeros(1)]))


def exponential(process: Process, steps: int) -> Tensor:
    """Equal steps in log(sigma/alpha): log-snr by k-diffusion's name, https://github.com/crowsonkb/k-diffusion."""
    return log_snr(process, steps)


def karras(process: Process, steps: int, *, rho: float = 7.0) -> Tensor:
    """Equal steps in (sigma/alpha)^(1/rho), EDM's grid.

    References: Karras et al. 2022, eq. 5, https://arxiv.org/abs/2206.00364.
    """
    low, high = finite_range(process)
    level = torch.linspace(math.exp(-low / rho), math.exp(-high / rho), steps + 1, dtype=torch.float64)
    return exact_ends(process, process.inverse_log_snr(-rho * level.log()))


def sgm_uniform(process: Process, steps: int) -> Tensor:
    """Equal steps in time from t_max, "trailing"; `to_zero(GRIDS["sgm-uniform"], append=False)` is the published one.

    References: https://github.com/Stability-AI/generative-models; ComfyUI's sgm_uniform; "trailing" in Lin et al. 2023,
    Common diffusion noise schedules and sample steps are flawed, https://arxiv.org/abs/2305.08891.
    """
    return uniform(process, steps)


def beta(process: Process, steps: int, *, a: float = 0.6, b: float = 0.6, clock: str = "t") -> Tensor:
    """Quantiles of a Beta(0.6, 0.6) law in time: dense at both ends.

    clock="t" is the paper's; clock="rho" places the quantiles in sigma/alpha, as diffusers does.
    References: Lee et al., Beta sampling is all you need, 2024, https://arxiv.org/abs/2407.12173.
    """
    return _curve(process, _beta_heights(steps, a, b), clock)


def kl_optimal(process: Process, steps: int, *, std: float = 1.0) -> Tensor:
    r"""Equal steps in arctan(sigma/alpha): the optimum for Gaussian data of deviation `std`.

    sigma/alpha = std tan((1 - x) arctan(rho_max/std) + x arctan(rho_min/std)).
    References: Sabour, Fidler, Kreis, Align your steps, 2024, https://arxiv.org/abs/2404.14507.
    """
    inside("std", std, "(0, inf]")
    high, low = (math.atan(math.exp(-lam) / std) for lam in finite_range(process))
    level = std * torch.linspace(high, low, steps + 1, dtype=torch.float64).tan()
    return exact_ends(process, process.inverse_log_snr(-level.log()))


def logistic(
    process: Process,
    steps: int,
    *,
    center: float = 0.25,
    width: float = 0.9,
    tail: float = 0.04,
    first: float = -math.inf,
    last: float = math.inf,
) -> Tensor:
    """Equal steps in sigmoid((lambda - center)/width) + tail * lambda: most of them where data takes shape.

    lambda is log-SNR. The steps are 1/(4 width tail) + 1 times as dense at the centre as far from it. Center and width
    are in units of log-SNR, for data of about unit size; chosen with `benchmarks/closed_forms.py`. The steps are equal
    from the log-SNR `first` on, where that is above the start's, to `last`, where that is below the end's: the first
    step leads from the start to where the step from there would end, and the last one from `last` to the end.
    """
    if not (width > 0 and tail > 0):
        raise ValueError(f"got width={width} and tail={tail}: give numbers above 0")
    low, high = finite_range(process)
    low, until = max(low, min(first, high)), min(last, high)
    apart = int(until < high and steps > 1)  # the last step
    place = lambda lam: torch.sigmoid((lam - center) / width) + tail * lam  # noqa: E731
    points = 1 + min(max(1024, math.ceil(16 * (until - low) / width)), 2**16)
    known = torch.linspace(low, until, points, dtype=torch.float64)
    curve = place(known)
    target = torch.linspace(curve[0].item(), curve[-1].item(), steps + 1 - apart, dtype=torch.float64)
    lam = known[torch.searchsorted(curve, target).clamp(max=len(known) - 1)]
    for _ in range(5):  # Newton's method, from so near that it ends at rounding
        share = torch.sigmoid((lam - center) / width)
        lam = lam - (share + tail * lam - target) / (share * (1 - share) / width + tail)
    times = process.inverse_log_snr(lam.clamp(low, until))
    return exact_ends(process, torch.cat([times, times[-1:]]) if apart else times)


def linear_quadratic(process: Process, steps: int, *, threshold: float = 0.025, clock: str = "t") -> Tensor:
    r"""Small equal steps in time for half of the grid, then quadratically growing ones, joined smoothly.

    1 - tau = c i for i <= L, c i + (1 - c n) ((i - L)/(n - L))^2 beyond, with L = n // 2 and c = threshold/L, so that
    the first half covers `threshold` of the way. Made for flows; clock="rho" puts it on sigma/alpha.
    References: https://github.com/genmoai/mochi (linear_quadratic_schedule).
    """
    inside("threshold", threshold, "(0, 0.5)")
    half = steps // 2
    i = torch.arange(steps + 1, dtype=torch.float64)
    slope = threshold / half if half else 0.0
    way = slope * i + (1 - slope * steps) * ((i - half).clamp(min=0) / (steps - half)) ** 2
    return _curve(process, 1 - way, clock)


@typed
def flow_shift(
    shift: float | None = None, *, mu: float | None = None, grid: Grid = uniform, tokens: int | None = None
) -> Grid:
    r"""A grid moved towards noise: tau' = s tau / (1 + (s - 1) tau), that is lambda' = lambda - log s.

    Give one of `shift` (s; 3 for Stable Diffusion 3), `mu` (log s) or `tokens` (the length of the image's sequence,
    which sets mu as in `dynamic_mu`). Where tau does not run from 1 to 0, its range is stretched first.
    References: Esser et al., Scaling rectified flow transformers, 2024, eq. 23, https://arxiv.org/abs/2403.03206.
    """
    if sum(x is not None for x in (shift, mu, tokens)) != 1:
        raise ValueError(f"got shift={shift}, mu={mu}, tokens={tokens}: give exactly one of them")
    s = shift if shift is not None else math.exp(mu if mu is not None else dynamic_mu(tokens or 0))
    inside("shift", s, "(0, inf)")

    def shifted(process: Process, steps: int) -> Tensor:
        tau = torch.sigmoid(-process.log_snr(grid(process, steps)))
        start, end = tau[0].clone(), tau[-1].clone()
        x = (tau - end) / (start - end)
        tau = end + (start - end) * (s * x / (1 + (s - 1) * x))
        return exact_ends(process, process.inverse_log_snr(-torch.logit(tau)))

    return shifted


def dynamic_mu(tokens: int, *, low: tuple[int, float] = (256, 0.5), high: tuple[int, float] = (4096, 1.15)) -> float:
    """Log of the flow shift for an image of so many tokens: a line through (tokens, mu) at two sizes.

    The defaults are FLUX.1's, for 16 x 16 pixel tokens: 256 for 256 x 256 pixels, 4096 for 1024 x 1024.
    References: https://github.com/black-forest-labs/flux.
    """
    inside("tokens", tokens, "[1, inf]")
    (first, start), (last, end) = low, high
    return start + (end - start) * (tokens - first) / (last - first)


@typed
def to_zero(grid: Grid, *, append: bool = True) -> Grid:
    """A grid whose last step goes to sigma = 0 instead of t_min; one that ends there already stays as it is.

    With `append` the other steps run to t_min first (k-diffusion's append_zero, diffusers' final_sigmas_type="zero");
    without, t_min is replaced. Of `GRIDS["default"]` it is the solver's own default grid that is ended so.
    """
    return ToZero(grid, append)


@dataclass(frozen=True)
class ToZero:
    """See `to_zero`."""

    grid: Grid
    append: bool

    def __call__(self, process: Process, steps: int) -> Tensor:
        if process.log_snr(process.t_min) == math.inf:
            return self.grid(process, steps)
        zero = process.t_zero
        if zero is None:
            raise ValueError(f"got {type(process).__name__}, which has no time at sigma = 0: end at t_min")
        if self.append:
            kept = self.grid(process, steps - 1).tolist() if steps > 1 else [process.t_max]
        else:
            kept = self.grid(process, steps).tolist()[:-1]
        return torch.tensor([*kept, zero], dtype=torch.float64)


def finite_range(process: Process) -> tuple[float, float]:
    """The log-SNR at both ends, moved inside by a thousandth of the time axis where it is infinite."""
    inset = 1e-3 * (process.t_max - process.t_min)
    low, high = float(process.log_snr(process.t_max)), float(process.log_snr(process.t_min))
    low = low if math.isfinite(low) else float(process.log_snr(process.t_max - inset))
    return low, high if math.isfinite(high) else float(process.log_snr(process.t_min + inset))


def exact_ends(process: Process, times: Tensor) -> Tensor:
    """The same times with the process's own ends in place of the first and the last."""
    times[0], times[-1] = process.t_max, process.t_min
    return times


@functools.lru_cache(maxsize=256)
def _beta_heights(steps: int, a: float, b: float) -> Tensor:
    """Quantiles from 1 down to 0, which no process changes; kept, as a table of a hundred numbers is cheap to hold."""
    return beta_quantile(torch.linspace(1, 0, steps + 1, dtype=torch.float64), a, b)


def beta_quantile(q: Tensor, a: float, b: float) -> Tensor:
    """The x in [0, 1] below which a Beta(a, b) law has probability q."""
    if not (a > 0 and b > 0):
        raise ValueError(f"got Beta({a}, {b}): give numbers above 0")
    whole = math.exp(math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b))
    half = torch.tensor(0.5, dtype=torch.float64)
    below = q * whole <= _incomplete_beta(half, a, b)
    lower = _below_half(torch.where(below, q, 0.0) * whole, a, b)
    return torch.where(below, lower, 1 - _below_half(torch.where(below, 0.0, 1 - q) * whole, b, a))


def _below_half(area: Tensor, a: float, b: float) -> Tensor:
    """The x in [0, 1/2] with int_0^x v^(a-1) (1-v)^(b-1) dv = area, by bisection."""
    low, high = torch.zeros_like(area), torch.full_like(area, 0.5)
    for _ in range(60):
        middle = (low + high) / 2
        less = _incomplete_beta(middle, a, b) < area
        low, high = torch.where(less, middle, low), torch.where(less, high, middle)
    return torch.where(area == 0, 0.0, (low + high) / 2)


def _incomplete_beta(x: Tensor, a: float, b: float) -> Tensor:
    """The integral of v^(a-1) (1-v)^(b-1) from 0 to x <= 1/2: a power series, 60 terms of ratio at most about x."""
    term, total = torch.ones_like(x), torch.full_like(x, 1 / a)
    for k in range(1, 60):
        term = term * x * (k - b) / k
        total = total + term / (a + k)
    return total * x**a


def _curve(process: Process, height: Tensor, clock: str) -> Tensor:
    """Times at heights that fall from 1 to 0, stretched over a clock between the finite ends."""
    u, (low, high) = clock_of(clock), finite_range(process)
    ends = [float(u.of_log_snr(process, torch.tensor(lam, dtype=torch.float64))) for lam in (low, high)]
    if clock == "t":
        ends = [process.t_max, process.t_min]
    return exact_ends(process, u.time(process, ends[1] + (ends[0] - ends[1]) * height))
