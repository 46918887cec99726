r"""
A table fitted to your model
============================

A sampler of n calls is a table of numbers, and the published ones were made for no
model in particular. Since the numbers are known before the run and the run is
differentiable, they can be moved until n calls end where many calls of the same model
end: ``fs.fit``, or ``fewstep fit`` on the command line. The network is not touched.
"""

import matplotlib.pyplot as plt
import torch

import fewstep as fs

process = fs.VP()
means = torch.tensor([[1.05, 0.0], [-0.7, 0.7], [0.0, -1.4], [-0.28, -0.21]])
oracle = fs.Mixture(process, means, 0.2)

# %%
# Before and after
# ----------------
#
# A teacher of 40 calls says where noises should end. The start is DPM-Solver++ 2M with
# four calls; then the grid, the times at which the network is called and every weight
# move by gradient descent, on 256 noises, for 80 iterations. Drawn are 300 noises that
# the fit has not seen: open circles are where the teacher takes them, dots where four
# calls do, and lines join the two. Before, the clusters are too narrow and their edges
# lead astray; after, the distance is a third.

table = fs.fit(
    oracle,
    process,
    steps=4,
    shape=(2,),
    solver="dpmpp-2m",
    grid="logistic",
    final="state",
    samples=256,
    held_out=128,
    batch=64,
    teacher_steps=40,
    descent=fs.Descent(iterations=80, rate=0.1),
    progress=False,
)
for name, value in table.card["rmse"].items():
    print(f"held-out distance to the teacher, {name}: {value:.3f}")

start = fs.tabulate("dpmpp-2m", process, grid="logistic", steps=4, final="state")
x = process.prior(fs.Noise(seed=0).normal("initial", 0, (300, 2)))
teacher = fs.sample(oracle, process, solver="multistep-3", steps=40, final="state", x=x)
fig, axes = plt.subplots(1, 2, figsize=(8.4, 4.0), sharex=True, sharey=True)
for axis, (name, how) in zip(axes, (("before", start), ("after", table)), strict=True):
    ends = fs.sample(oracle, process, solver=how, x=x)
    pairs = torch.stack([teacher, ends]).permute(2, 0, 1)
    axis.plot(*pairs, color="gray", lw=0.5, alpha=0.6)
    axis.plot(*teacher.T, "ko", mfc="none", mew=0.5, label="teacher, 40 calls")
    axis.plot(*ends.T, "C1.", ms=3, label="4 calls")
    error = float((ends - teacher).square().mean().sqrt())
    axis.set(title=f"{name}: RMS distance {error:.3f}", xlabel="$x_1$", aspect="equal")
axes[0].set_ylabel("$x_2$")
axes[0].legend(loc="upper right")
plt.show()

# %%
# What has moved
# --------------
#
# Left: the calls in log-SNR, before and after. Right: how much each prediction counts
# in the end state, read off the eliminated tables: the last one counts more than before
# and the one before it less (a longer reach), and the first, which is little but the
# mean of the data, fills up. A fitted table is still a table: it is printed, saved (a
# few kB) and run anywhere; its card says what it was fitted to.


def weights(table):
    """Weight of every call in the last state."""
    last = table.eliminate().rows[-1].form.terms
    calls = [k for k, row in enumerate(table.rows) if row.at is not None]
    return [float(last[("y", k, "x0")]) for k in calls]


fig, axes = plt.subplots(1, 2, figsize=(8.6, 2.5), width_ratios=(3, 2))
for k, (name, how) in enumerate((("before", start), ("after", table))):
    lam = [process.log_snr(row.at) for row in how.rows if row.at is not None]
    axes[0].plot(lam, [-k] * 4, "|", ms=16, mew=1.8)
    axes[1].bar(torch.arange(4) + 0.36 * k, weights(how), 0.34, label=name)
axes[0].set_yticks((0, -1), ("before", "after"))
axes[0].set(xlabel=r"log-SNR of the calls $\lambda$ (nats)", ylim=(-1.6, 0.6))
axes[1].set(xlabel="call", xticks=range(4), ylabel="weight in the end state")
axes[1].legend()
plt.show()
