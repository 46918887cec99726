r"""
What a network cannot know
==========================

A solver that is best on an exact denoiser can be the worst on a network. A network
errs, and what becomes of its error depends on what it predicts. With F its output and D
the data that it stands for,

.. math:: D = p\,z + q\,F, \qquad \delta F \;\to\; \delta D = q\,\delta F .

Near pure noise :math:`|q|` is about 1 for a network that predicts v or a flow's
velocity, and :math:`\sigma/\alpha = e^{-\lambda}` for one that predicts noise, with
:math:`\lambda` the log-SNR. The network cannot know better: it was taught noise, all of
which it sees there, and data are the little that is left of the difference.
"""

import matplotlib.pyplot as plt
import torch

import fewstep as fs

# %%
# The amplification
# -----------------
#
# Left: an error of 0.04 in the output, as an error in the data, for four predictions.
# The black line is what there is to know: how far the best guess of data of deviation
# 0.5 moves from their mean, :math:`0.5\sqrt{s/(1 + s)}` with :math:`s =
# e^{2\lambda}/4`. Right of the crossing a network is worth asking. Left of it, one
# that predicts noise says less than the mean of the data would, which costs no call.
#
# Right: what was measured on ``models/fashion-noise``, a small network that predicts
# noise: its squared error beyond what no function of the state can tell. None shows
# from a log-SNR of -2 on, and none anywhere for ``models/fashion-vp``, which predicts
# v.

delta, std = 0.04, 0.5
lam = torch.linspace(-5, 3, 200)
sigma = torch.exp(-lam)  # over alpha
amplified = {
    "noise": sigma,
    "v": (1 + torch.exp(2 * lam)).rsqrt(),
    "flow": 1 / (1 + torch.exp(lam)),
    "edm": sigma * std / (sigma**2 + std**2).sqrt(),
}
told = std * (1 + 4 * sigma**2).rsqrt()

fig, axes = plt.subplots(1, 2, figsize=(8.6, 3.2), sharey=True)
for name, q in amplified.items():
    axes[0].plot(lam, delta * q, label=f"predicts {name}")
axes[0].plot(lam, told, "k", label="what the state tells")
axes[0].set(ylabel="deviation, in data", yscale="log", ylim=(1e-3, 20))
where = torch.tensor([-5.0, -4.0, -3.0, -2.5])
measured = torch.tensor([0.0425, 0.040, 0.035, 0.022])
axes[1].plot(where, torch.exp(-where) * measured, "o-", label="its error, measured")
axes[1].plot(lam, told, "k", label="what the state tells")
first = fs.Default(predicts="noise").first(fs.VP(), 5)
axes[1].axhline(0.3, color="gray", ls=":", lw=1)
axes[1].axvline(first, color="C1", ls="--", lw=1.2, label="the first call")
for axis in axes:
    axis.set(xlabel=r"log-SNR $\lambda$ (nats)")
    axis.legend()
plt.show()

# %%
# What it does to a solver
# ------------------------
#
# To first order the error cancels: a short step from :math:`\lambda` to
# :math:`\lambda + h` gives D the weight :math:`\alpha_s(1 - e^{-h})`, and what is
# added to the state is :math:`\sigma_s(e^h - 1)\,\delta`, small. It does not cancel
# in a long first step, nor in whatever reads differences of early predictions: there
# the error of two calls, each of several deviations, is taken for a motion of the
# data and extrapolated.
#
# Six clusters, seen exactly and through a network whose noise is wrong by a shift and
# a smooth field of 0.04, in six calls. Each axis shows where the same 400 noises end;
# the circles are two deviations wide.

process = fs.VP()
centres = torch.tensor([[x, y] for y in (-0.5, 0.5) for x in (-0.7, 0.0, 0.7)])
exact = fs.Mixture(process, centres, 0.1)


def network(z, t):
    """The exact noise, and an error of deviation 0.04."""
    t = t.flatten()[0]  # of the batch
    noise = (z - process.alpha(t) * exact(z, t)) / process.sigma(t)
    return noise + 0.03 + 0.04 * torch.sin(3 * z.flip(1) + 1.0)


seen = fs.wrap(network, process, predicts="noise", time="t")
panels = {
    "exact, gaussian-split": (exact, "gaussian-split", "logistic"),
    "network, gaussian-split": (seen, "gaussian-split", "logistic"),
    "network, ddim": (seen, "ddim", "logistic"),
    "network, default": (seen, "default", "default"),
}
fig, axes = plt.subplots(1, 4, figsize=(9.6, 2.9), sharex=True, sharey=True)
for axis, (title, (denoiser, solver, grid)) in zip(axes, panels.items(), strict=True):
    x = fs.sample(denoiser, process, solver=solver, grid=grid, steps=6, shape=(400, 2))
    for centre in centres:
        ring = plt.Circle(centre.tolist(), 0.2, fill=False, color="#AAAAAA", lw=0.8)
        axis.add_patch(ring)
    axis.scatter(*x.T, s=3, color="C0", linewidths=0)
    axis.set(title=title, xlim=(-1.4, 1.4), ylim=(-1.2, 1.2), aspect="equal")
plt.show()

# %%
# What the default does with it
# -----------------------------
#
# Before the state tells the parts of data apart, data might as well be one point, and
# then the state is carried in closed form, without a call and without an error; the
# first prediction sets right what was carried. So ``fs.Default`` first asks a network
# that predicts noise where its error, carried to the data, is 0.3 (the dotted line
# above), but not after a log-SNR of -1.5; where no error was measured, one of 0.037 is
# taken, less for larger pictures. That is before the crossing, since to first order
# what is left of the error cancels. From there on two points are enough: a third would
# extrapolate that rest. The last call comes before the end, and the last step ends in
# its prediction, which takes out what noise the earlier errors have made.
#
# Five calls of ``models/fashion-noise``, from the same noises, and fifty as a
# reference.

model = fs.load("../../models/fashion-noise")
denoiser = model.denoiser(list(range(0, 10, 2)) * 2)
rows = {
    "gaussian-split, 5": ("gaussian-split", "logistic", 5),
    "default, 5": ("default", "default", 5),
    "ddim, 50": ("ddim", "uniform", 50),
}
fig, axes = plt.subplots(3, 10, figsize=(9.0, 3.0))
for line, (title, (solver, grid, steps)) in zip(axes, rows.items(), strict=True):
    how = {"solver": solver, "grid": grid, "steps": steps, "seed": 0}
    x = fs.sample(denoiser, model.process, shape=(10, *model.shape), **how)
    print(f"{title} calls: from {float(x.min()):.1f} to {float(x.max()):.1f}")
    for axis, image in zip(line, x[:, 0], strict=True):
        axis.imshow(image.numpy(), cmap="gray", vmin=-1, vmax=1)
        axis.set(xticks=[], yticks=[])
    line[0].set_ylabel(title, fontsize=7)
plt.show()

# %%
# Measuring it
# ------------
#
# ``fewstep stats`` measures the error of a network by log-SNR and says where it is
# weak; the default reads what was measured, and ``fs.Default(error=...)`` takes it by
# hand.
