r"""
Adaptive steps: every sample takes its own
==========================================

A grid is the same for all samples. Some runs are easy, though: they fall straight into
their cluster; others pass between two and turn late. A *driver* chooses the steps while
it runs, for each sample alone, so that the error of a step stays below a tolerance.
``fs.solve`` runs one and says what became of each sample.
"""

import matplotlib.pyplot as plt
import torch

import fewstep as fs

process = fs.VP()
oracle = fs.Mixture(process, torch.tensor([[-1.5, 0.0], [1.0, 1.0], [1.2, -1.0]]), 0.15)

# %%
# Where the work is
# -----------------
#
# Runge-Kutta of order 5 with the embedded one of order 4 as its judge (Dormand and
# Prince 1980, as `Song et al. 2021 <https://arxiv.org/abs/2011.13456>`_ use it), from
# 1600 starts on a raster. Left: in which cluster a start ends. Right: how many network
# calls it took. The calls draw the borders: between two basins a run hesitates, and
# pays for it.

side = torch.linspace(-2.5, 2.5, 40, dtype=torch.float64)
starts = torch.cartesian_prod(side, side)
outcome = fs.solve(oracle, process, solver=fs.RK45(rtol=1e-5, atol=1e-5), x=starts)
print(outcome)
basin = (outcome.state[:, None] - oracle.means).norm(dim=2).argmin(1)
fig, axes = plt.subplots(1, 2, figsize=(8.2, 3.6), sharey=True)
place = {"extent": (-2.5, 2.5, -2.5, 2.5), "origin": "lower"}
panels = {"cluster": basin, "network calls": outcome.calls}
for axis, (title, values) in zip(axes, panels.items(), strict=True):
    image = axis.imshow(values.reshape(40, 40).T.numpy(), **place)
    axis.set(title=title, xlabel="start $z_1$")
    axis.grid(False)
fig.colorbar(image, label="calls")
axes[0].set_ylabel("start $z_2$")
plt.show()

# %%
# The steps themselves
# --------------------
#
# What a sample did is a table like any other, with a grid of its own: here those of the
# quickest, a middling and the slowest run. All are long where nothing happens.
# ``fs.sample`` replays such a table without the driver, to the same numbers.

order = outcome.calls.argsort()
quickest, middling, slowest = order[[0, 800, -1]].tolist()
chosen = {"quickest": quickest, "middling": middling, "slowest": slowest}
fig, axis = plt.subplots(figsize=(7.6, 2.0))
for k, sample in enumerate(chosen.values()):
    times = outcome.table(sample).grid
    axis.plot(times, torch.full_like(times, -k), "|", ms=14, mew=1.5)
names = [f"{name}: {outcome.calls[sample]} calls" for name, sample in chosen.items()]
axis.set_yticks((0, -1, -2), names)
axis.set(xlabel="time t, from noise to data", xlim=(1.02, -0.02), ylim=(-2.6, 0.6))
plt.show()

table, its_start = outcome.table(slowest), starts[slowest : slowest + 1]
again = fs.sample(oracle, process, solver=table, x=its_start)
print(f"replayed: off by {float((again - outcome.state[slowest]).abs().max()):.0e}")

# %%
# Error for calls
# ---------------
#
# The tolerance sets the error, roughly in proportion. Against solvers on a fixed grid
# (lines) adaptive ones are no bargain at few calls: UniPC on a good grid is nearer up
# to some seventy calls, and beyond them the order 5 pays. They are the tool for
# reference solutions, for likelihoods, and where one does not know how many steps are
# enough.

x = fs.Noise(seed=0).normal("initial", 0, (100, 2), dtype=torch.float64)
best = fs.UniPC(points=3, final_ramp=False)
how = {"x": x, "final": "state"}  # where the drivers end
exact = fs.sample(oracle, process, solver=best, grid="logistic", steps=800, **how)
distance = lambda z: float((z - exact).norm(dim=1).median())
fig, axis = plt.subplots(figsize=(6.8, 3.8))
tolerances = [10.0**-k for k in range(1, 6)]
drivers = {
    "rk45": [fs.RK45(rtol=tol, atol=tol) for tol in tolerances],
    "dpm-adaptive-23": [fs.DPMAdaptive(rtol=tol, atol=tol / 10) for tol in tolerances],
}
for (name, made), marker in zip(drivers.items(), "os", strict=True):
    runs = [fs.solve(oracle, process, solver=driver, x=x) for driver in made]
    calls = [run.calls.double().mean() for run in runs]
    error = [distance(run.state) for run in runs]
    axis.loglog(calls, error, marker, ms=6, label=f"{name}, tolerance 0.1 to 0.00001")
budget = (10, 20, 40, 80, 160)
for solver, style in (("ddim", ":"), ("dpmpp-2m", "--"), ("unipc-2", "-")):
    ends = [fs.sample(oracle, process, solver=solver, steps=n, **how) for n in budget]
    axis.loglog(budget, [distance(z) for z in ends], f"k{style}", lw=1, label=solver)
axis.set(xlabel="network calls (mean)", ylabel="distance to the exact end (median)")
axis.legend()
plt.show()
