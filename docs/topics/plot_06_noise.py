r"""
Stochastic samplers, and noise that belongs to the sample
=========================================================

A stochastic sampler follows the reverse SDE: it adds fresh noise as it goes. What is
that good for, what does it cost, and where should the noise come from? In much code it
comes from one generator, in the order of asking, and then a sample depends on its
neighbours in the batch and on the number of steps. Here it is a function of seed,
sample and place on the path.
"""

import matplotlib.pyplot as plt
import torch

import fewstep as fs

process = fs.VP()
means, stds = torch.tensor([[-1.0], [0.2], [1.1]]), torch.tensor([0.12, 0.12, 0.2])
oracle = fs.Mixture(process, means, stds)

# %%
# What noise is good for: it forgets
# ----------------------------------
#
# The starts here are wrong on purpose: drawn with half of the standard deviation that
# they should have, as happens when a model is run from a start it was not trained for.
# The ODE keeps the error to the end, and its samples crowd in the middle cluster; each
# step of the SDE replaces a part of the state by fresh noise, and the error with it.

line = torch.linspace(-2, 2, 300, dtype=torch.float64)[:, None]
data = fs.marginal_log_prob(oracle, line, process.t_min).exp()
wrong = 0.5 * process.prior(fs.Noise(seed=0).normal("initial", 0, (4000, 1)))
fig, axes = plt.subplots(1, 2, figsize=(9.0, 3.0), sharey=True)
for axis, solver in zip(axes, ("ddim", "ddpm"), strict=True):
    how = {"grid": "log-snr", "steps": 100, "x": wrong, "final": "state"}
    ends = fs.sample(oracle, process, solver=solver, **how)
    axis.fill_between(line[:, 0], data, color="#DDDDDD", label="data")
    bars = {"bins": 70, "range": (-2, 2), "density": True, "histtype": "step"}
    axis.hist(ends[:, 0], lw=1.4, label=solver, **bars)
    axis.set(xlabel="where a run ends", xlim=(-2, 2))
    axis.legend(loc="upper left")
axes[0].set_ylabel("density")
plt.show()

# %%
# One path for every number of steps
# ----------------------------------
#
# A sample has one Brownian path, and the noise of a step is what the path does over
# that step. So a run of 25 steps and one of 400 see the same noise, once coarsely and
# once finely, and the states belong together (left). Drawn from a generator in the
# order of asking, the same seed means another path at each number of steps (right), and
# comparing two settings on "the same seed" compares nothing.

start = torch.tensor([[0.4]], dtype=torch.float64)
fig, axes = plt.subplots(1, 2, figsize=(9.0, 3.3), sharey=True)
sources = {
    "noise of the path": lambda: fs.Noise(seed=4),
    "noise of a generator": lambda: torch.Generator().manual_seed(4),
}
for axis, (title, source) in zip(axes, sources.items(), strict=True):
    for steps, width in ((400, 0.7), (100, 1.2), (25, 2.0)):
        kept = []
        keep = lambda row, t, z, d, to=kept: to.append((process.log_snr(t), z.item()))
        how = {"grid": "log-snr", "steps": steps, "x": start, "noise": source()}
        fs.sample(oracle, process, solver="ddpm", callback=keep, **how)
        axis.plot(*zip(*kept, strict=True), lw=width, label=f"{steps} steps")
    axis.set(title=title, xlabel=r"log-SNR $\lambda$, from noise to data")
axes[0].set_ylabel("state z")
axes[0].legend()
plt.show()

# %%
# What it costs: strong and weak error
# ------------------------------------
#
# With one path for all step counts the error of each sample can be measured, as for an
# ODE: left, the distance to a run of 512 steps with the same noise. Right asks for
# less, that the samples are spread as those are: the error of their standard deviation.
# DDPM is of order 1 in both. DPM-Solver++ 2M SDE and SEEDS integrate the prediction
# better (`Lu et al. 2022 <https://arxiv.org/abs/2211.01095>`_, `Gonzalez et al. 2023
# <https://arxiv.org/abs/2305.14267>`_): at 16 calls the spread of their samples is
# several times as near, although each sample is not.

eps = fs.Noise(seed=0).normal("initial", 0, (1000, 1), dtype=torch.float64)
how = {"grid": "log-snr", "x": process.prior(eps), "final": "state"}
fine = fs.sample(oracle, process, solver="dpmpp-2m-sde", steps=512, **how)
budget = (16, 32, 64, 128)
fig, axes = plt.subplots(1, 2, figsize=(9.0, 3.4))
for solver, marker in (("ddpm", "o"), ("dpmpp-2m-sde", "s"), ("seeds-2", "^")):
    ends = [fs.sample(oracle, process, solver=solver, steps=n, **how) for n in budget]
    strong = [(end - fine).abs().mean() for end in ends]
    weak = [(end.std() - fine.std()).abs() for end in ends]
    for axis, error in zip(axes, (strong, weak), strict=True):
        axis.loglog(budget, error, marker=marker, label=solver)
for axis in axes:
    axis.set_xlabel("network calls")
    axis.set_xticks(budget, budget)
    axis.minorticks_off()
axes[0].set_ylabel("error of each sample (mean distance)")
axes[1].set_ylabel("error of the standard deviation")
axes[0].legend()
plt.show()

# %%
# A sample does not know its batch
# --------------------------------
#
# Sample 5 of a seed is the same numbers in a batch of eight, in two batches of four,
# and alone. So work can be split over machines, repeated in part, or made larger, and
# nothing that was there before changes.

how = {"solver": "ddpm", "steps": 20, "seed": 7}
whole = fs.sample(oracle, process, shape=(8, 1), **how)
halves = [fs.sample(oracle, process, shape=(4, 1), first=k, **how) for k in (0, 4)]
alone = fs.sample(oracle, process, shape=(1, 1), first=5, **how)
print("two batches of four:", torch.equal(whole, torch.cat(halves)))
print("sample 5 alone:     ", torch.equal(whole[5:6], alone))
