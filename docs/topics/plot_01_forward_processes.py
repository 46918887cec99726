r"""
Forward processes: what noise does to data
==========================================

A diffusion or flow model is trained to undo a *forward process*, which takes clean data
:math:`x_0` to noise as time goes from 0 to its end. Every process of this library is
linear and Gaussian,

.. math:: z_t = M_t x_0 + R_t \epsilon, \qquad \epsilon \sim \mathcal N(0, I),

and processes differ in the two coefficients only. Most have a number for each,
:math:`z_t = \alpha_t x_0 + \sigma_t \epsilon`; blurring has a number for every
frequency, masking for every pixel, Langevin diffusion a block for position and
velocity. The clock that counts is the log-SNR :math:`\lambda_t = \log(\alpha_t /
\sigma_t)`.
"""

# sphinx_gallery_thumbnail_number = 3
import matplotlib.pyplot as plt
import torch

import fewstep as fs

SCALAR = {
    "VP": fs.VP(),
    "cosine": fs.Cosine(),
    "flow": fs.Flow(),
    "VE": fs.VE(),
    "EDM": fs.EDM(),
}

# %%
# Two curves make a process
# -------------------------
#
# VP keeps the variance of unit data (`Song et al. 2021
# <https://arxiv.org/abs/2011.13456>`_), cosine does so along a cosine (`Nichol,
# Dhariwal 2021 <https://arxiv.org/abs/2102.09672>`_), flow goes along a straight line
# (`Lipman et al. 2022 <https://arxiv.org/abs/2210.02747>`_); VE and EDM leave the
# signal alone and let the noise grow (`Karras et al. 2022
# <https://arxiv.org/abs/2206.00364>`_). The third panel is what they have in common:
# each falls from clean data at the top to noise at the bottom (flow all the way, to
# infinity at both ends). Two states of the same log-SNR differ in scale only, so a
# network trained for one of these processes serves all: ``fs.retime`` does that.

fig, axes = plt.subplots(1, 3, figsize=(9.5, 3.3))
share = torch.linspace(0.001, 0.999, 300, dtype=torch.float64)
styles = ["-", "--", "-.", ":", (0, (5, 1))]
for (name, process), style in zip(SCALAR.items(), styles, strict=True):
    t = share * process.t_max
    curves = process.alpha(t), process.sigma(t), process.log_snr(t)
    for axis, curve in zip(axes, curves, strict=True):
        axis.plot(share, curve, ls=style, label=name)
axes[0].set(title="signal", ylabel=r"$\alpha_t$")
axes[1].set(title="noise", ylabel=r"$\sigma_t$", yscale="log", ylim=(1e-2, 1e2))
axes[2].set(title="log-SNR", ylabel=r"$\lambda_t$ (nats)", ylim=(-9, 9))
for axis in axes:
    axis.set_xlabel("time, share of its range")
axes[0].legend(loc="lower left")
plt.show()

# %%
# The same data under each
# ------------------------
#
# The data here are two narrow heaps, at -1 and +1. Each panel is the density of the
# state from data (left) to noise (right). Under VP and flow the heaps run together and
# the state keeps a size of about one; under VE they stay where they are and drown. Flow
# moves evenly, VP has forgotten nearly everything by two thirds of its time: where
# something happens is a matter of the clock, and the steps of a sampler have to follow
# it.

fig, axes = plt.subplots(1, 3, figsize=(9.5, 3.1))
for axis, process in zip(axes, (fs.VP(), fs.Flow(), fs.VE(sigma_max=4.0)), strict=True):
    oracle = fs.Mixture(process, torch.tensor([[-1.0], [1.0]]), 0.15)
    z = torch.linspace(-3, 3, 200, dtype=torch.float64)[:, None]
    times = torch.linspace(0.001, 0.999, 200).tolist()
    density = torch.stack([fs.marginal_log_prob(oracle, z, t).exp() for t in times], 1)
    place = {"extent": (0, 1, -3, 3), "aspect": "auto", "origin": "lower"}
    axis.imshow(density.numpy(), vmax=0.9, **place)
    axis.set(title=type(process).__name__, xlabel="time t", ylabel="state z")
    axis.grid(False)
plt.show()

# %%
# Not all pixels alike
# --------------------
#
# A process may fade different parts of the data at different times. Here is one image
# (drawn from the shipped model, six calls) under four processes. Blurring takes the
# fine detail first and then adds noise as VP does (`Hoogeboom, Salimans 2022
# <https://arxiv.org/abs/2209.05557>`_); heat dissipation hardly adds noise at all
# (`Rissanen et al. 2022 <https://arxiv.org/abs/2206.13397>`_), so the end of its time
# is no noise but a grey image; masking fades a growing disc (`Daras et al. 2022
# <https://arxiv.org/abs/2209.05442>`_). States live in the process's own coordinates,
# such as cosine coefficients; ``to_data`` makes an image of them.

model = fs.load()
how = {"steps": 6, "shape": (1, *model.shape), "seed": 3}
boot = fs.sample(model.denoiser("Ankle boot"), model.process, **how)
size = model.shape[1:]
rows = (
    fs.VP(),
    fs.Blurring(size=size),
    fs.HeatDissipation(size=size),
    fs.Masking(size=size, sigma_max=2.0),
)
fig, axes = plt.subplots(4, 7, figsize=(7.6, 4.6))
eps = fs.Noise(seed=0).normal("initial", 0, boot.shape)
times = torch.linspace(0.02, 0.98, 7).tolist()
for line, process in zip(axes, rows, strict=True):
    for axis, t in zip(line, times, strict=True):
        image = process.to_data(process.diffuse(boot, t, eps))[0, 0]
        axis.imshow(image.numpy(), cmap="gray", vmin=-1.2, vmax=1.2)
        axis.set(xticks=[], yticks=[])
    line[0].set_ylabel(type(process).__name__, fontsize=8)
for axis, t in zip(axes[0], times, strict=True):
    axis.set_title(f"t = {t:.2f}")
plt.show()

# %%
# With a velocity
# ---------------
#
# Critically damped Langevin diffusion couples data to a velocity and puts noise on the
# velocity alone (`Dockhorn et al. 2022 <https://arxiv.org/abs/2112.07068>`_). Position
# and velocity are mixed, so the coefficients are blocks of 2 x 2 numbers. Two points of
# data (the crosses) turn and spread; at the end both are one and the same heap. Solvers
# ask a process for M and R and never what they are, so most run here as they do on VP.

process = fs.CLD()
fig, axes = plt.subplots(1, 4, figsize=(9.5, 2.7), sharex=True, sharey=True)
for axis, t in zip(axes, (0.05, 0.2, 0.4, 1.0), strict=True):
    for k, point in enumerate((-1.5, 1.5)):
        eps = fs.Noise(seed=k).normal("initial", 0, (400, 2, 1))
        z = process.diffuse(torch.full((400, 1), point), t, eps)[..., 0]
        axis.scatter(*z.T, s=3, marker="os"[k])
        axis.plot(point, 0.0, "kx")
    axis.set(title=f"t = {t:.2f}", xlabel="position")
axes[0].set(ylabel="velocity", xlim=(-3.2, 3.2), ylim=(-2.2, 2.2))
plt.show()
