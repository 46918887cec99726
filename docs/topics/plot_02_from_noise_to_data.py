r"""
From noise to data: the ODE and the SDE
=======================================

All that a sampler needs to know of the data is one function, the denoiser :math:`D(z,
t) = E[x_0 \mid z_t = z]`: the mean of everything that may lie behind a noisy state. The
score, the slope of the log density of the states, is the same knowledge in other units,

.. math:: \nabla \log p_t(z) = -\frac{z - \alpha_t D(z, t)}{\sigma_t^2},

and so are predictions of noise, of v and of velocity. This page uses a mixture of
Gaussians, whose denoiser is known exactly, and turns noise into data in the two ways
there are.
"""

import matplotlib.pyplot as plt
import torch

import fewstep as fs

process = fs.VP()

# %%
# What the score does
# -------------------
#
# Three clusters in the plane, at three levels of noise; arrows are the score, shading
# is the density. With much noise (left) there is one heap, and all arrows point to its
# middle: the mean of all data. As the noise falls the heap divides, and each place gets
# a cluster of its own to point to. Between clusters the arrows turn sharply: that is
# where a sampler decides, and where steps that are too long go wrong.

plane = fs.Mixture(process, torch.tensor([[-1.2, -0.6], [1.2, -0.6], [0.0, 1.2]]), 0.2)
line = torch.linspace(-2.2, 2.2, 120, dtype=torch.float64)
fine = torch.cartesian_prod(line, line)
coarse = fine.reshape(120, 120, 2)[4::8, 4::8].reshape(-1, 2)
fig, axes = plt.subplots(1, 3, figsize=(9.5, 3.7), sharex=True, sharey=True)
for axis, t in zip(axes, (0.6, 0.3, 0.15), strict=True):
    density = fs.marginal_log_prob(plane, fine, t).exp().reshape(120, 120)
    score = -(coarse - process.alpha(t) * plane(coarse, t)) / process.sigma(t) ** 2
    axis.imshow(density.T.numpy(), extent=(-2.2, 2.2, -2.2, 2.2), origin="lower")
    axis.quiver(*coarse.T, *score.T, width=0.004, color="#444444")
    axis.set(title=f"t = {t:.2f}, noise {process.sigma(t):.2f}", xlabel="$z_1$")
    axis.grid(False)
axes[0].set_ylabel("$z_2$")
plt.show()

# %%
# Same laws, other paths
# ----------------------
#
# Both of these carry noise to data (`Song et al. 2021
# <https://arxiv.org/abs/2011.13456>`_). The probability-flow ODE
#
# .. math:: dz = \big[ f_t z - \tfrac12 g_t^2 \nabla \log p_t(z) \big] dt
#
# has no noise of its own; the reverse SDE takes the full score and adds fresh noise,
#
# .. math:: dz = \big[ f_t z - g_t^2 \nabla \log p_t(z) \big] dt + g_t\, d\bar w.
#
# Eight starts, each run both ways. The ODE's paths are smooth and never cross, so a
# start decides its end. The SDE's wander, and the same starts end elsewhere. Yet many
# runs of either are spread at every time as the shading says.

means, stds = torch.tensor([[-1.0], [0.2], [1.1]]), torch.tensor([0.12, 0.12, 0.2])
oracle = fs.Mixture(process, means, stds)
start = torch.linspace(-1.75, 1.75, 8, dtype=torch.float64)[:, None]
z = torch.linspace(-2.6, 2.6, 200, dtype=torch.float64)[:, None]
times = torch.linspace(1, process.t_min, 200).tolist()
density = torch.stack([fs.marginal_log_prob(oracle, z, t).exp() for t in times], 1)
fig, axes = plt.subplots(1, 2, figsize=(9.5, 3.6), sharey=True)
for axis, solver, title in zip(axes, ("ddim", "ddpm"), ("ODE", "SDE"), strict=True):
    how = {"solver": solver, "grid": "uniform", "steps": 200, "x": start, "seed": 1}
    how |= {"final": "state"}  # at t_min, where the picture ends
    path = fs.trajectory(oracle, process, **how)
    place = {"extent": (1, 0, -2.6, 2.6), "aspect": "auto", "origin": "lower"}
    axis.imshow(density.numpy(), vmax=1.0, **place)
    axis.plot(path.times, path.states[:, :, 0], color="C1", lw=1.0)
    axis.set(title=title, xlabel="time t, from noise to data")
    axis.grid(False)
axes[0].set_ylabel("state z")
plt.show()

# %%
# How much noise: eta
# -------------------
#
# Between the two lies a family with any share of fresh noise, here DDIM's :math:`\eta`
# (eq. 12 and 16 of `Song, Meng, Ermon 2021 <https://arxiv.org/abs/2010.02502>`_): 0 is
# the ODE's step, 1 is DDPM. Left: with 100 steps the law of the ends is the data's for
# every eta. Right: all samples begin at one and the same point, and only the noises on
# the way differ. Without noise they all end in one place (the bar that leaves the
# picture); the more noise, the more a run forgets where it began, and at eta = 1 next
# to nothing of it is left.

fig, axes = plt.subplots(1, 2, figsize=(9.5, 3.3), sharey=True)
exact = fs.marginal_log_prob(oracle, z, process.t_min).exp()
for axis, title in zip(axes, ("from noise", "from one point"), strict=True):
    axis.fill_between(z[:, 0], exact, color="#DDDDDD", label="the data")
    axis.set(title=title, xlabel="where a run ends", xlim=(-2, 2), ylim=(0, 1.8))
noise = process.prior(fs.Noise(seed=0).normal("initial", 0, (3000, 1)))
for eta, style in ((0.0, "-"), (0.3, "--"), (1.0, ":")):
    for axis, x in zip(axes, (noise, torch.full_like(noise, 0.35)), strict=True):
        how = {"solver": fs.DDIM(eta=eta), "grid": "log-snr", "steps": 100, "seed": 2}
        how |= {"final": "state"}
        ends = fs.sample(oracle, process, x=x, **how)
        look = {"histtype": "step", "ls": style, "label": rf"$\eta$ = {eta:g}"}
        axis.hist(ends[:, 0], bins=60, range=(-2, 2), density=True, lw=1.4, **look)
axes[0].set_ylabel("density")
axes[0].legend()
plt.show()
