r"""Log densities by the instantaneous change of variables along the probability-flow ODE.

$$ \frac{dz}{dt} = K z + B\, D(z, t), \qquad K = R' R^{-1} = F + \tfrac12 G G^T \Sigma^{-1}, \quad B = M' - K M, \qquad
   \frac{d}{dt} \log p_t(z_t) = -\operatorname{tr} K - \operatorname{tr} \Big( B \frac{\partial D}{\partial z} \Big) $$

so log p(z at t_min) is the log density of the law a run starts from, at the state the ODE carries z to, plus the
integral of the divergence. The trace is over data coordinates e: with J = dD/dz,

$$ \operatorname{tr}(B J) = \sum_i e_i^T J B e_i = E[\, e^T J B e \,], \qquad E[e e^T] = I, $$

the sum for small data (one reverse pass a coordinate), Hutchinson's mean over random signs e for large.

References: Song et al., Score-based generative modeling through SDEs, 2021, https://arxiv.org/abs/2011.13456; Grathwohl
et al., FFJORD, 2019, https://arxiv.org/abs/1810.01367; Dockhorn et al., Score-based generative modeling with
critically-damped Langevin diffusion, 2022, for the bound on CLD, https://arxiv.org/abs/2112.07068.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fewstep.denoiser.base import Denoises, of_samples, same_process
from fewstep.denoiser.bridged import given_end, placed
from fewstep.likelihood.bits import BIN, bits_per_dim
from fewstep.likelihood.closed_form import gaussian_log_prob
from fewstep.likelihood.lift import data_time, gaussian_start, lift
from fewstep.likelihood.ode import integrate
from fewstep.loop.tabulate import right_for
from fewstep.noise import Noise
from fewstep.process import Process
from fewstep.process.base import derivative
from fewstep.process.bridge import Bridge
from fewstep.process.clock import clock as clock_of
from fewstep.process.operator import Coefficient, apply, inverse, trace
from fewstep.words import inside, one_of, typed, whole

__all__ = ["Likelihood", "log_prob"]

NOISE = -6.0  # the log-SNR at which a state is noise alone: its law is off by e^-12 Var(x0)
EXACT = 64  # the divergence is exact up to this many data coordinates unless asked otherwise


@dataclass(frozen=True, kw_only=True, eq=False)
class Likelihood:
    """What `log_prob` found.

    - `nats`: (batch,) in float64.
    - `error`: (batch,) standard error from the random signs and the drawn velocities; 0 where nothing is random, nan
      where there is one draw alone.
    - `calls`: (batch,) network calls each sample took, all its drawn velocities together.
    - `z`: the state at t_max (of the first drawn velocity).
    - `t`, `dim`: the time at which the density is that of the sampler's state, and the data's dimension.
    - `says`: in one sentence, of what `nats` is the value, estimate or bound.
    """

    nats: Tensor
    error: Tensor
    calls: Tensor
    z: Tensor
    t: float
    dim: int
    says: str

    def bits_per_dim(self, *, bin: float = BIN) -> Tensor:
        """Bits per dimension of levels a distance `bin` apart; the data must have had one bin of uniform noise."""
        return bits_per_dim(self.nats, self.dim, bin=bin)


@typed
def log_prob(
    denoiser: Denoises,
    process: Process,
    x: Tensor,
    *,
    t: float | None = None,
    divergence: str = "auto",
    probes: int | Tensor = 4,
    draws: int = 4,
    prior: Callable[[Tensor], Tensor] | None = None,
    tolerance: float = 1e-6,
    max_calls: int = 20_000,
    clock: str | None = None,
    seed: int = 0,
    first: int = 0,
) -> Likelihood:
    r"""The log density in nats that the probability-flow ODE gives to data.

    It is the density of what a sampler without error returns: the state at t (its position, on CLD), run down from
    N(0, Sigma) at t_max. On CLD the velocity at t is no data: it is drawn from the Gaussian q(v | x) that the process
    gives it, and

    $$ \log p(x) = \log \int p(x, v)\, dv \;\ge\; E \log \frac1K \sum_k \frac{p(x, v_k)}{q(v_k | x)} $$

    is a lower bound in the mean for any number K of `draws`, and tight where v given x is that Gaussian (t to 0).

    Order 5, adaptive, with a step size for every sample; float64 outside the network.

    Args:
        denoiser: (z, t) -> x0_hat, differentiable in z, called with (batch,) times.
        process: the process; sigma > 0 and a log-SNR below -2 at t_max (or give `prior`).
        x: data (batch, *shape), dequantised if it is discrete (see `dequantise`).
        t: the time at which x is the sampler's state; None is t_min, and a thousandth of the axis above it where
            sigma is 0 there.
        divergence: "exact", "hutchinson", or "auto": exact up to 64 coordinates.
        probes: how many random signs a sample (Hutchinson), or ready ones (probes, batch, *shape).
        draws: velocities a sample, on CLD.
        prior: the log density (batch, *state) -> (batch,) at t_max; None is N(0, Sigma).
        tolerance: of the local error of a step, relative and absolute, in the state and in nats.
        max_calls: network calls after which the run is given up with a sentence.
        clock: "t", "log-snr" or "rho": what the steps are adapted in; None is log-SNR, and t where alpha is 0.
        seed, first: of the signs and velocities; sample i is number `first` + i.
    """
    same_process(denoiser, process)
    right_for(denoiser, process, "a likelihood")
    one_of("divergence", divergence, ("auto", "exact", "hutchinson"))
    inside("tolerance", tolerance, "(0, inf)")
    t, noise = data_time(process, t), Noise(seed, first)
    if isinstance(process, Bridge):  # the density of z given y is that of u = z - n y
        if (y := given_end(denoiser)) is None:
            raise ValueError(f"got {type(process).__name__}, a bridge: give fewstep.bridged(denoiser, y)")
        denoiser, x = placed(denoiser, process), x - process.seen(torch.zeros_like(x), t, y)
        if process.log_snr(process.t_max) < NOISE:  # the part on which u is not yet noise alone
            process = replace(process, t_max=float(process.inverse_log_snr(NOISE)))
    if prior is None:
        gaussian_start(process, "raise t_max, or give prior=, the log density there")
    block, dim = process.kind == "block", math.prod(x.shape[1:])
    batch, repeats = len(x), whole("draws", draws) if block else 1
    x = x.detach().to(torch.float64).repeat(repeats, *(1,) * (x.ndim - 1))
    velocities = [noise.normal("velocity", k, (batch, *x.shape[1:]), dtype=torch.float64, device=x.device)
                  for k in range(repeats if block else 0)]  # fmt: skip
    z, log_q = lift(process, x, t, torch.cat(velocities) if block else None)
    exact = divergence == "exact" or (divergence == "auto" and dim <= EXACT and not isinstance(probes, Tensor))
    signs = None if exact else _signs(probes, noise, tuple(x.shape), batch)
    clock = clock or ("t" if float(process.log_snr(process.t_max)) == -math.inf else "log-snr")
    end, change, calls = _carry(denoiser, process, z, t, signs, clock, tolerance, max_calls)
    at_end = gaussian_log_prob(process, end, process.t_max) if prior is None else prior(end)
    each = at_end.to(torch.float64)[:, None] + change
    nats, error = each.mean(1) - log_q, _standard_error(each, exact)
    if block:
        weights = nats.reshape(repeats, batch)
        nats = weights.logsumexp(0) - math.log(repeats)
        share = (weights - nats).exp()
        within = (error.reshape(repeats, batch) * share).square().mean(0) / repeats
        error = (_standard_error(share.T, False) ** 2 + within) ** 0.5
    kind = f"a lower bound in the mean, from {repeats} velocities drawn for each sample," if block else "the value"
    how = "exact" if exact else "Hutchinson's estimate"
    says = f"{kind} of the log density of {type(process).__name__}'s ODE at t = {t:g}; its divergence is {how}"
    calls = calls.reshape(repeats, batch).sum(0)
    return Likelihood(nats=nats, error=error, calls=calls, z=end[:batch], t=t, dim=dim, says=says)


def _carry(
    denoiser: Denoises,
    process: Process,
    z: Tensor,
    t: float,
    signs: Tensor | None,
    clock: str,
    tolerance: float,
    max_calls: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The state at t_max, log p_t - log p_t_max (batch, probes), and the calls of each sample."""
    u, shape, n = clock_of(clock), z.shape[1:], math.prod(z.shape[1:])
    width = 1 if signs is None else len(signs)
    ends = [float(u.of(process, torch.tensor(v, dtype=torch.float64))) for v in (t, process.t_max)]

    def slope(y: Tensor, at: Tensor, which: Tensor) -> Tensor:
        time = u.time(process, at)
        if clock != "t":
            time = time.clamp(min(t, process.t_max), max(t, process.t_max))  # rounding at the ends
        rate = 1 / derivative(lambda v: u.of(process, v), time)
        state = y[:, :n].reshape(-1, *shape)
        if process.kind == "scalar":
            k = process.R_rate(time) * inverse(process.R(time))  # finite at alpha = 0
        else:
            k = process.F(time) + 0.5 * (process.GG(time) * inverse(process.Sigma(time)))
        b = process.M_rate(time) - k * process.M(time)
        here = None if signs is None else signs[:, which]
        own = denoiser if len(which) == len(z) else of_samples(denoiser, which, len(z))
        d, divergence = _prediction_and_trace(own, process, state, time, b, here)
        grow = apply(k, state) + apply(b, d)
        spread = divergence + torch.as_tensor(trace(k, process.data_shape(tuple(shape)))).to(divergence)[:, None]
        return rate.to(y)[:, None] * torch.cat([grow.flatten(1), spread], 1)

    y = torch.cat([z.flatten(1), z.new_zeros(len(z), width)], 1)
    found, calls = integrate(slope, y, ends[0], ends[1], tolerance=tolerance, max_calls=max_calls, groups=n)
    return found[:, :n].reshape(-1, *shape), found[:, n:], calls


def _prediction_and_trace(
    denoiser: Denoises, process: Process, z: Tensor, t: Tensor, b: Coefficient, signs: Tensor | None
) -> tuple[Tensor, Tensor]:
    """D in the process's coordinates, and tr(B J) (batch, probes); its sum over all coordinates where signs is None."""
    with torch.inference_mode(False), torch.enable_grad():
        u = z.detach().clone().requires_grad_(True)
        out = denoiser(u, t.clone())
        out = out["x0"] if isinstance(out, Mapping) else out
        if tuple(out.shape) != (wanted := (len(z), *process.data_shape(tuple(z.shape[1:])))):
            raise ValueError(f"the denoiser returned shape {tuple(out.shape)}: it must return {wanted}")
        d = process.coordinates(out.to(u.dtype))
        if not d.requires_grad:
            raise ValueError(
                "the denoiser's answer has no derivative in the state, which a likelihood needs: give one that keeps "
                "autograd on (no detach, no inference mode inside)"
            )
        found = []
        units = torch.eye(d[0].numel(), dtype=d.dtype, device=d.device).reshape(-1, 1, *d.shape[1:])
        for e in units.expand(-1, *d.shape) if signs is None else signs:
            (back,) = torch.autograd.grad(d, u, e.to(d), retain_graph=True)
            found.append((back * apply(b, e.to(d))).flatten(1).sum(1))
    trace = torch.stack(found, 1)
    return d.detach(), trace if signs is not None else trace.sum(1, keepdim=True)


def _signs(probes: int | Tensor, noise: Noise, shape: tuple[int, ...], batch: int) -> Tensor:
    """Random signs (probes, batch, *shape), the same for every drawn velocity of a sample."""
    if isinstance(probes, Tensor):
        found = probes.to(torch.float64)
        if tuple(found.shape[1:]) != (batch, *shape[1:]):
            raise ValueError(f"got probes of shape {tuple(probes.shape)}: give (probes, {batch}, *{shape[1:]})")
    else:
        count = range(whole("probes", probes))
        found = torch.stack([noise.normal("probe", k, (batch, *shape[1:]), dtype=torch.float64) for k in count]).sign()
    return found.repeat(1, shape[0] // batch, *(1,) * (len(shape) - 1))


def _standard_error(each: Tensor, exact: bool) -> Tensor:
    """Of the mean over the last axis: 0 where it is exact, nan where there is one draw alone."""
    if exact:
        return each.new_zeros(len(each))
    return each.new_full((len(each),), math.nan) if each.shape[1] == 1 else each.std(1) / each.shape[1] ** 0.5
