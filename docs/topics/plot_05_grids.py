r"""
Where the steps fall
====================

A run of n calls has n + 1 times. Which times, the *grid*, matters as much as the solver
when n is small, and it costs nothing to change: it is a decreasing list of numbers,
used exactly as given.
"""

import matplotlib.pyplot as plt
import torch

import fewstep as fs

process = fs.VP()
means = torch.tensor([[-1.0, -0.5], [1.0, -0.5], [0.0, 1.0]])
oracle = fs.Mixture(process, means, torch.tensor([0.1, 0.2, 0.3]))
NAMES = ("uniform", "power", "log-snr", "karras", "kl-optimal", "logistic")

# %%
# Six grids of twelve steps
# -------------------------
#
# Each tick but the last is a network call, placed at its log-SNR: pure noise is left,
# data right. Equal steps in time spend most calls on noisy states (on VP) and end in
# one very long step; equal steps in log-SNR spend them evenly, also on the last whiffs
# of noise, which hardly show. Karras (eq. 5 of `Karras et al. 2022
# <https://arxiv.org/abs/2206.00364>`_) has steps that grow towards data; kl-optimal
# (`Sabour et al. 2024 <https://arxiv.org/abs/2404.14507>`_) and logistic, this
# library's default on VP, put most calls into the middle. The curve says why: it is the
# speed at which the prediction changes along the ODE, averaged over 200 runs.

how = {"grid": "log-snr", "steps": 200, "shape": (200, 2), "final": "state"}
run = fs.trajectory(oracle, process, solver="dpmpp-2m", **how)
lam = process.log_snr(run.times)
speed = run.denoised.diff(dim=0).norm(dim=2).mean(1) / lam.diff()
fig, (top, bottom) = plt.subplots(2, 1, figsize=(7.6, 4.4), sharex=True)
top.fill_between(lam[1:], speed, color="#CFE3F2")
top.set(ylabel="change of D\nper nat of log-SNR", ylim=(0, None))
for k, name in enumerate(NAMES):
    ticks = process.log_snr(fs.GRIDS[name](process, 12))
    bottom.plot(ticks, torch.full((13,), -k), "|", ms=13, mew=1.6, color=f"C{k}")
bottom.set_yticks(range(0, -len(NAMES), -1), NAMES)
bottom.set(xlabel=r"log-SNR $\lambda$ (nats), from noise to data", ylim=(-5.7, 0.7))
plt.show()

# %%
# Same solver, other grids
# ------------------------
#
# The error of DPM-Solver++ 2M against calls, on the same 256 starts. At ten calls the
# best of these grids is eight times as good as the worst. The kink of "uniform" there
# is worth a look: the published solver ends in a step of order 1 when it has fewer than
# ten, and in one of order 2 from ten on, and over a last step as long as this one a
# line is worse than a constant. A grid that is good for one solver and one data set
# need not be for another: ``fewstep bench`` compares them on your model.

starts = fs.Noise(seed=0).normal("initial", 0, (256, 2), dtype=torch.float64)
how = {"grid": "log-snr", "steps": 400, "x": starts, "final": "state"}
exact = fs.sample(oracle, process, solver="multistep-pc-3", **how)
budget = (5, 7, 10, 14, 20, 28, 40)


def error(grid, steps, solver="dpmpp-2m"):
    """RMS distance to the exact ends."""
    how = {"grid": grid, "steps": steps, "x": starts, "final": "state"}
    ends = fs.sample(oracle, process, solver=solver, **how)
    return float((ends - exact).square().mean().sqrt())


fig, axis = plt.subplots(figsize=(6.8, 3.9))
for name, marker in zip(NAMES, "osD^vP", strict=True):
    axis.loglog(budget, [error(name, n) for n in budget], marker=marker, label=name)
axis.set(xlabel="network calls", ylabel="distance to the exact end (RMS)")
axis.set_xticks(budget, budget)
axis.minorticks_off()
axis.legend(ncols=2)
plt.show()

# %%
# A grid found on the model
# -------------------------
#
# Instead of choosing a formula one can look. A teacher runs over sixty fine steps once;
# the cost of every step that could be cut out of them is measured, and the cheapest
# chain of n is found by dynamic programming: ``gits`` by how far one first-order step
# lands from the teacher (`Chen et al. 2024 <https://arxiv.org/abs/2405.11326>`_),
# ``klub`` by the divergence of paths (`Sabour et al. 2024
# <https://arxiv.org/abs/2404.14507>`_). What they minimise is the loss of a first-order
# solver, so DDIM's column is the one to read first. On this mixture no found grid beats
# the best formula: gits comes level with kl-optimal, which was derived for Gaussian
# data and so has its home here. For a network nobody has derived one, and the search is
# worth its sixty calls.

how = {"shape": (128, 2), "grid": "log-snr", "dtype": torch.float64}
found = {
    "gits": fs.gits(oracle, process, **how),
    "klub": fs.klub(oracle, process, **how),
}
grids = {name: fs.GRIDS[name] for name in NAMES} | found
print(f"error at 8 calls    {'ddim':>8} {'dpmpp-2m':>9}")
for name, grid in grids.items():
    print(f"{name:18}  {error(grid, 8, 'ddim'):8.3f} {error(grid, 8):9.3f}")

fig, axis = plt.subplots(figsize=(7.6, 1.9))
for k, name in enumerate(("logistic", *found)):
    ticks = process.log_snr(grids[name](process, 8))
    axis.plot(ticks, torch.full((9,), -k), "|", ms=13, mew=1.6)
axis.set_yticks((0, -1, -2), ("logistic", *found))
axis.set(xlabel=r"log-SNR $\lambda$ (nats), from noise to data", ylim=(-2.7, 0.7))
plt.show()
