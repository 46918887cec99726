r"""Measuring statistics of a denoiser on data: one pass over the log-SNR nodes, saved as it goes.

At every node the same data and noises are diffused, z = M x0 + R eps, and the network's noise eps_theta is averaged:

- `eps2`, `error2`: E eps_theta^2 and E (eps - eps_theta)^2, over coordinates too but on processes of frequencies;
- `l` = E[(sigma d eps_theta/dx v) v] with v = +-1 (eq. 58 of DPM-Solver-v3): one Jacobian-vector product;
- `s, b`: the regression of f' on f = e^-lambda eps_theta - l y along the ODE (eq. 60-63), with y = x/alpha,

$$ y' = -e^{-\lambda} \epsilon, \qquad f' = e^{-\lambda} [(l - 1)\, \epsilon + \epsilon'] - l' y, \qquad
   \epsilon' = \partial_\lambda \epsilon + \partial_y \epsilon\; y' $$

where epsilon' is a second product. Since l is known only at the end, the pass adds up moments of eps, eps' and y.

References: Zheng et al., DPM-Solver-v3, 2023, appendix C.1.1, https://arxiv.org/abs/2310.13268; Bao et al.,
Analytic-DPM, 2022, https://arxiv.org/abs/2201.06503.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from fewstep.denoiser.base import Denoises
from fewstep.denoiser.bridged import of_slice
from fewstep.files import Results
from fewstep.process.base import Process, Time
from fewstep.process.operator import apply, inverse
from fewstep.saved import Saved
from fewstep.solver.statistics import Statistics
from fewstep.terminal import Bar
from fewstep.words import typed, whole

__all__ = ["measure"]

_MOMENTS = ("e", "d", "y", "ee", "ey", "yy", "ed", "yd", "l")  # eps, eps', y, their products, and l
_STEEPEST = 4.0  # f grows like e^2lambda in pure noise and falls like it near data; beyond, s is its sampling error


@typed
def measure(
    denoiser: Denoises | None,
    process: Process,
    data: Tensor,
    *,
    nodes: int = 120,
    v3: bool | None = None,
    batch: int = 64,
    seed: int = 0,
    out: str | Path | None = None,
    weights: str | None = None,
    conditioned: Callable[[slice], Denoises] | None = None,
    labels: Sequence[int] | None = None,
    progress: bool = True,
) -> Statistics:
    """Measures statistics; with `out` it saves them there, and takes up where a stopped run of the same call was.

    Args:
        denoiser: (z, t) -> x0_hat, differentiable for `v3`; or None, with `conditioned`.
        process: any linear process; its ends must be finite in log-SNR, or else the nodes stop at +-10.
        data: (K, *shape), clean.
        nodes: how many log-SNRs, uniform; the paper takes 120 to 1200.
        v3: measure l, s, b too, three evaluations instead of one; default: on scalar processes.
        batch: data points a call.
        seed: of the noises and the +-1.
        out: the file to write, `statistics.safetensors` by custom; while it works, `<out>.part`.
        weights: SHA-256 of the network's weights, recorded.
        conditioned: the denoiser of a slice of the data, where conditions differ between data points.
        labels: what these conditions are, a number a data point; a stopped run of others is not taken up.
        progress: show a bar with the time left on a terminal.

    Returns:
        The statistics, per pixel.
    """
    v3 = process.kind == "scalar" if v3 is None else v3
    if v3 and process.kind != "scalar":
        raise ValueError(f"got v3=True on {type(process).__name__} ({process.kind}): l, s, b are of scalar processes")
    if (denoiser is None) == (conditioned is None):
        raise ValueError("got both a denoiser and conditioned, or none of them: give one")
    if whole("nodes", nodes) < 3 or len(data) < 2:
        raise ValueError(f"got {nodes} nodes and {len(data)} data points: give at least 3, and 2")
    batch = whole("batch", batch)
    ends = [min(max(float(process.log_snr(t)), -10.0), 10.0) for t in (process.t_max, process.t_min)]
    lam = torch.linspace(ends[0], ends[1], nodes, dtype=torch.float64)
    digest = hashlib.sha256(data.detach().cpu().contiguous().numpy().tobytes()).hexdigest()
    about = {"process": repr(process), "v3": v3, "seed": seed, "weights": weights, "batch": batch, "data": digest,
             "labels": None if labels is None else list(labels), "nodes": lam.tolist()}  # fmt: skip
    saved = Saved(None if out is None else Path(f"{out}.part"), about)
    if out is not None:
        with Results(Path(out).parent):  # one that cannot be written is refused before the work
            pass
    mean, starts = saved.read(), range(0, len(data), batch)
    done = len(next(iter(mean.values()), ()))
    with Bar((nodes - done) * len(starts), "measuring statistics", shown=progress) as bar:
        for lam_i in lam[done:].tolist():
            total: dict[str, Tensor] = {}
            for start in starts:
                where = slice(start, min(start + batch, len(data)))
                part = conditioned(where) if conditioned else of_slice(denoiser, len(data), where)
                sums = _node(part, process, data[where], lam_i, seed=seed * 65537 + start, v3=v3)
                total = {k: v + total[k] if total else v for k, v in sums.items()}
                bar.advance()
            row = {k: v[None] / len(data) for k, v in total.items()}
            mean = {k: torch.cat([mean[k], v]) if mean else v for k, v in row.items()}
            saved.write(mean)
    l, s, b = _v3(lam, mean) if v3 else (None, None, None)  # noqa: E741
    found = Statistics(
        log_snr=lam, eps2=_eps2(mean), error2=mean["r2"], l=l, s=s, b=b, samples=len(data), weights=weights
    )
    if out is not None:
        found.save(out)
    saved.remove()
    return found


def _node(denoiser: Any, process: Process, x0: Tensor, lam: float, *, seed: int, v3: bool) -> dict[str, Tensor]:
    """Sums over a batch at one node, in float64 on the CPU; the same seed gives the same noises at every node."""
    t = float(process.inverse_log_snr(lam))
    generator = torch.Generator().manual_seed(seed)
    shape = (len(x0), *process.state_shape(tuple(x0.shape[1:])))
    eps = torch.randn(shape, generator=generator, dtype=torch.float64).to(x0)
    z = process.diffuse(x0, t, eps)
    if not v3:
        with torch.no_grad():
            e = _noise(process, denoiser, z, t).double().cpu()
        return _squares(process, e, eps)
    v = (torch.rand(shape, generator=generator) < 0.5).to(x0) * 2 - 1
    at = torch.full((len(z),), lam, dtype=torch.float64)
    rho, y = float((-at[0]).exp()), z / process.M(t)

    def eps_of(y: Tensor, lam: Tensor) -> Tensor:
        """The noise as a function of y = x/alpha and log-SNRs (batch,)."""
        t = process.inverse_log_snr(lam)
        return _noise(process, denoiser, apply(process.M(t), y), t)

    e, turned = _directional(eps_of, (y, at), (v, torch.zeros_like(at)))
    _, d = _directional(eps_of, (y, at), (-rho * e, torch.ones_like(at)))
    e, d, y, turned, v = (x.double().cpu() for x in (e, d, y, turned, v))
    moments = (e, d, y, e * e, e * y, y * y, e * d, y * d, rho * turned * v)
    return {k: x.sum(0) for k, x in zip(_MOMENTS, moments, strict=True)} | _squares(process, e, eps)


def _v3(lam: Tensor, mean: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """l, s, b of the moments (eq. 58, 60, 61): f = rho e - l y, f' = rho ((l - 1) e + d) - l' y."""
    e, d, y, ee, ey, yy, ed, yd, l = (mean[k] for k in _MOMENTS)  # noqa: E741
    column = lambda x: x.reshape(-1, *(1,) * (l.ndim - 1))  # noqa: E731
    rho, slope = column((-lam).exp()), torch.gradient(l, spacing=(lam,), dim=0)[0]
    f, f1 = rho * e - l * y, rho * ((l - 1) * e + d) - slope * y
    ff = rho**2 * ee - 2 * rho * l * ey + l**2 * yy
    ff1 = rho * (rho * ((l - 1) * ee + ed) - slope * ey) - l * (rho * ((l - 1) * ey + yd) - slope * yy)
    variance = (ff - f * f).clamp(min=0)
    s = torch.where(variance > 1e-12 * ff, (ff1 - f * f1) / variance.clamp(min=1e-300), 0.0)
    s = s.clamp(-_STEEPEST, _STEEPEST)
    return l, s, f1 - s * f


def _noise(process: Process, denoiser: Any, z: Tensor, t: Time) -> Tensor:
    """The noise R^-1 (z - M D)."""
    d = denoiser(z, t)
    d = process.coordinates((d if isinstance(d, Tensor) else d["x0"]).to(z.dtype))
    return apply(inverse(process.R(t)), z - apply(process.M(t), d))


def _squares(process: Process, e: Tensor, eps: Tensor) -> dict[str, Tensor]:
    """Sums over the batch of eps_theta^2, eps^2 and the error^2 a coordinate of the data: a number, or one a frequency.

    On blocks a coordinate of the data has several of the state, which are added.
    """

    def square(x: Tensor) -> Tensor:
        if process.kind == "diagonal":
            return (x * x).reshape(len(x), -1, *x.shape[x.ndim - process.M(process.t_max).rank :]).mean(1).sum(0)
        return (x * x).sum(1).mean() * len(x) if process.kind == "block" else (x * x).mean() * len(x)

    eps = eps.double().cpu()
    return {"e2": square(e), "n2": square(eps), "r2": square(e - eps)}


def _eps2(mean: dict[str, Tensor]) -> Tensor:
    """E eps_theta^2 as a ratio to the drawn eps^2, whose mean is known; on blocks less what tells nothing of the data.

    Where there is little data in the state eps_theta is nearly eps, and their fluctuations cancel.
    """
    count = mean["n2"].mean().round().clamp(min=1)
    return count * mean["e2"] / mean["n2"] - (count - 1)


def _directional(
    f: Callable[..., Tensor], at: tuple[Tensor, Tensor], along: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Value and derivative of f along a direction, by forward-mode differentiation (attention in plain operations)."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), forward_ad.dual_level():
        value = f(*(forward_ad.make_dual(x, v.to(x)) for x, v in zip(at, along, strict=True)))
        primal, tangent = forward_ad.unpack_dual(value)
    return primal, torch.zeros_like(primal) if tangent is None else tangent
