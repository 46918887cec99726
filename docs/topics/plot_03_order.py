r"""
What a solver's order is, and exponential integrators
=====================================================

A sampler of n calls makes an error, the distance from where the exact ODE would have
ended. Its *order* p says how fast the error falls: like :math:`n^{-p}`, a straight line
of slope -p when both axes are logarithmic. Doubling the calls halves the error of a
method of order 1, and divides that of a method of order 3 by eight.

What makes diffusion samplers fast is not the order alone. The probability-flow ODE has
a large part that is known exactly before the run, and *exponential integrators* leave
nothing of it to chance.
"""

# sphinx_gallery_thumbnail_number = 2
import matplotlib.pyplot as plt
import torch

import fewstep as fs

vp = fs.VP()
CENTRES, WIDTHS = torch.tensor([[-1.0], [0.3], [1.0]]), torch.tensor([0.15, 0.1, 0.2])


def grid(calls, process=vp):
    """Equal steps in log-SNR between -3 and 3."""
    return process.inverse_log_snr(
        torch.linspace(-3, 3, calls + 1, dtype=torch.float64)
    )


# %%
# The linear part is free
# -----------------------
#
# For data that is one single point the prediction D never changes. In the right
# coordinates the ODE reads
#
# .. math:: d \frac{z}{\sigma_t} = D(z, t)\; d \frac{\alpha_t}{\sigma_t}
#
# (the data form of `DPM-Solver++ <https://arxiv.org/abs/2211.01095>`_), so with
# constant D one step of any length is exact: :math:`z_s = \frac{\sigma_s}{\sigma_t} z_t
# + \big(\alpha_s - \sigma_s \frac{\alpha_t}{\sigma_t}\big) D`, which is DDIM. Euler's
# method in t, in contrast, has to trace the exponentials of the linear part with
# straight lines. The error of one sample, on a single point at 0.8:

point = fs.Gaussian(vp, mean=0.8, std=0.0)
t, s = grid(1).tolist()
start = torch.tensor([[0.3]], dtype=torch.float64)
exact = vp.alpha(s) * 0.8 + vp.sigma(s) / vp.sigma(t) * (start - vp.alpha(t) * 0.8)
print("calls        Euler in t       DDIM")
for calls in (1, 4, 16, 64):
    how = {"grid": grid(calls), "x": start}
    ends = [fs.sample(point, vp, solver=solver, **how) for solver in ("euler", "ddim")]
    euler, ddim = (abs(float(end - exact)) for end in ends)
    print(f"{calls:5}  {euler:16.1e} {ddim:10.1e}")

# %%
# What is left to approximate
# ---------------------------
#
# Real data makes D move, and D is all that a solver has to guess between its calls.
# Left: D along one run of the ODE on a mixture, and what methods of eight steps take it
# for: order 1 holds the last value, order 2 continues the line through the last two.
# Right: the noise prediction along the same run, what the other form of the same idea
# (`DEIS <https://arxiv.org/abs/2204.13902>`_, `DPM-Solver
# <https://arxiv.org/abs/2206.00927>`_) interpolates. D settles where the noise is low,
# eps where it is high: the two forms are good at opposite ends.

oracle = fs.Mixture(vp, CENTRES, WIDTHS)
x = torch.tensor([[0.62]], dtype=torch.float64)
run = fs.trajectory(oracle, vp, solver="multistep-pc-3", grid=grid(400), x=x)
lam, data, state = vp.log_snr(run.times), run.denoised[:, 0, 0], run.states[:, 0, 0]
noise = (state - vp.alpha(run.times) * data) / vp.sigma(run.times)
curves = {"data prediction D": data, "noise prediction eps": noise}
fig, axes = plt.subplots(1, 2, figsize=(9.5, 3.3))
for axis, (name, curve) in zip(axes, curves.items(), strict=True):
    axis.plot(lam, curve, color="k", lw=1, label="exact")
    calls = torch.arange(0, 401, 50)
    axis.plot(lam[calls], curve[calls], "ko", label="calls")
    u, y = lam[calls], curve[calls]
    slope = torch.cat([torch.zeros(1), y.diff()[:-1] / u.diff()[:-1]])
    ahead = torch.stack([y[:-1], y[:-1] + slope * u.diff()])
    axis.hlines(y[:-1], u[:-1], u[1:], color="C1", ls="--", label="order 1")
    axis.plot(torch.stack([u[:-1], u[1:]]), ahead, "C0", label=["order 2", *[""] * 7])
    axis.set(xlabel=r"log-SNR $\lambda$, from noise to data", ylabel=name)
axes[0].legend()
plt.show()

# %%
# Error against calls
# -------------------
#
# The same mixture, 64 starts, in float64 so that rounding does not bend the lines. Thin
# lines have slopes -1, -2, -3.
#
# DDIM and Euler are both of order 1. DDIM, DPM-Solver++ and UniPC depend on log-SNR
# alone, so their lines are the same on every process; Euler in t is as good as the
# clock that the noise happens to be written in. On VP it does well here, because a
# state of about unit size hardly moves for most of the time; on VE, where the same run
# is a steep exponential, its errors are six to eleven times DDIM's.
#
# More order comes from remembering predictions, not from more calls: two of them give
# order 2 (DPM-Solver++ 2M); DEIS takes three; and the corrector of `UniPC
# <https://arxiv.org/abs/2302.04867>`_ reads each call a second time, for one order
# more. At eight calls they lie close together: there the error is in the constant and
# in where the steps fall, not in the order.

starts = fs.Noise(seed=0).normal("initial", 0, (64, 1), dtype=torch.float64)
budget = (8, 16, 32, 64, 128, 256)


def ends(process, solver, calls):
    """Where the starts end, in data space."""
    times = grid(calls, process)
    start = process.prior(starts, times[0].item())
    oracle = fs.Mixture(process, CENTRES, WIDTHS)
    z = fs.sample(oracle, process, solver=solver, grid=times, x=start)
    return z / process.alpha(times[-1].item())


best = fs.UniPC(points=3, final_ramp=False)
exact = {process: ends(process, best, 600) for process in (vp, fs.VE())}
fig, axis = plt.subplots(figsize=(6.8, 4.3))
for name, process, solver, style in (
    ("Euler in t, on VE", fs.VE(), "euler", "ko:"),
    ("Euler in t, on VP", vp, "euler", "ko--"),
    ("DDIM", vp, "ddim", "C0s-"),
    ("DPM-Solver++ 2M", vp, "dpmpp-2m", "C1D-"),
    ("DEIS, three points", vp, "deis-tab-2", "C2^-"),
    ("UniPC-2", vp, fs.UniPC(points=2, final_ramp=False), "C3v-"),
):
    off = [ends(process, solver, n) - exact[process] for n in budget]
    axis.loglog(
        budget, [each.square().mean().sqrt() for each in off], style, label=name
    )
for p in (1, 2, 3):
    slope = [2.0 * (8 / n) ** p for n in budget]
    axis.loglog(budget, slope, color="#BBBBBB", lw=0.8, zorder=0)
axis.set(xlabel="network calls", ylabel="distance to the exact end (RMS)")
axis.set_xticks(budget, budget)
axis.minorticks_off()
axis.legend(loc="lower left")
plt.show()
