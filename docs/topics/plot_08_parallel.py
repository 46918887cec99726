r"""
Parallel in time
================

A sampler calls the network once a step, one step after the other, because each state
needs the one before. Hardware would rather do many calls at once. Sampling in parallel
guesses all states of a run, calls the network on all of them together, makes better
states of the answers, and goes on until nothing moves: Picard iteration, which
ParaDiGMS (`Shih et al. 2023 <https://arxiv.org/abs/2305.16317>`_) brought to diffusion
models.

The table makes it simple. It is linear but for the calls, so a *round* is: call the
network on every row of a window; then walk the table with these outputs. Only the
predictions are guessed, never the linear part.
"""

import matplotlib.pyplot as plt
import torch

import fewstep as fs

process = fs.VP()
means = torch.randn(6, 8, generator=torch.Generator().manual_seed(1))
oracle = fs.Mixture(process, means, 0.3)
start = {"shape": (16, 8), "seed": 0, "dtype": torch.float64}
how = {"solver": "ddpm", "steps": 200, **start}
alone = fs.sample(oracle, process, **how)

# %%
# The front of a run
# ------------------
#
# A row is final when its state no longer moves, and the *front* is the first row that
# is not. One round makes at least one row final, so at worst this is the sequential run
# (dotted). Here is the front of the slowest of 16 samples, for 200 steps of DDPM and
# windows of several sizes. With all rows in the window it takes 13 rounds instead of
# 200: for twelve the front works through the noisy half, where the clusters are chosen,
# then the rest falls into place at once. A smaller window holds the front back, and
# calls less in vain.

fig, axis = plt.subplots(figsize=(6.8, 3.8))
axis.plot((0, 60), (0, 60), "k:", lw=1, label="one after the other")
print("window  rounds  calls a sample  distance to the sequential run")
for window in (8, 32, 64, 200):
    front = []
    note = lambda made, to=front: to.append(made.final)
    parallel = fs.Parallel(window=window, report=note)
    run = fs.solve(oracle, process, parallel=parallel, **how)
    axis.plot([*front, 200], label=f"window {window}")
    off = float((run.state - alone).abs().max())
    calls = float(run.calls.double().mean())
    print(f"{window:6} {run.rounds:7} {calls:15.0f} {off:15.1e}")
axis.set(xlabel="rounds", ylabel="final rows, of 200")
axis.legend()
plt.show()

# %%
# What it costs
# -------------
#
# Rounds fall, calls do not: most rows are called several times before they settle (the
# table above). So it pays where a call of many states takes hardly longer than a call
# of one, on a large accelerator with a small batch, or over several of them. On a
# processor core like the one that made this page it only costs.
#
# The tolerance says when a row counts as final: how far its state may still have moved,
# as a share of its size. Tolerance 0 gives the sequential result itself. The error
# follows the tolerance, and each digit more costs about one round.

tolerances = (1e-1, 1e-2, 1e-3, 1e-4, 1e-6)
settings = [fs.Parallel(window=None, tolerance=tol) for tol in tolerances]
runs = [fs.solve(oracle, process, parallel=each, **how) for each in settings]
off = [(run.state - alone).square().mean().sqrt() for run in runs]
fig, axes = plt.subplots(1, 2, figsize=(8.6, 3.2))
axes[0].semilogx(tolerances, [run.rounds for run in runs], "o-")
axes[0].set(xlabel="tolerance", ylabel="rounds (200 one by one)", ylim=(0, None))
axes[1].loglog(tolerances, off, "o-")
axes[1].loglog(tolerances, tolerances, ":", color="gray", label="the tolerance")
axes[1].set(xlabel="tolerance", ylabel="distance to the sequential run (RMS)")
axes[1].legend()
plt.show()

# %%
# Rounds hardly grow with steps
# -----------------------------
#
# Ten steps take 8 rounds, which is little gain for many calls; a hundred take 9 to 11.
# Noise makes DDPM a little slower to settle than the ODE. So this is for runs that must
# be long, such as those of stochastic samplers; where ten calls one after the other are
# enough, ten calls are better.

fig, axis = plt.subplots(figsize=(6.8, 3.4))
budget = (10, 25, 50, 100)
for solver, marker in (("ddim", "o"), ("ddpm", "s")):
    how = {"solver": solver, "parallel": fs.Parallel(window=None), **start}
    runs = [fs.solve(oracle, process, steps=n, **how) for n in budget]
    axis.plot(budget, [run.rounds for run in runs], marker=marker, label=solver)
axis.plot(budget, budget, "k:", lw=1, label="one after the other")
axis.set(xlabel="steps", ylabel="rounds", ylim=(0, 40))
axis.legend()
plt.show()
