r"""
Inverse problems: data from what was seen of it
===============================================

A part of an image is missing, or it is blurred, or small: something linear of it was
seen,

.. math:: y = A x_0 + \sigma_y n,

and wanted are samples of what it may have been. No model is trained for that. The
observation corrects the prediction of one that knows the data, so here, too, it is a
denoiser around a denoiser, for any solver.
"""

import matplotlib.pyplot as plt
import torch

import fewstep as fs

process = fs.VP()

# %%
# A case with an answer
# ---------------------
#
# Data are three clusters in the plane, and the first coordinate was seen: 0.6, with
# noise of deviation 0.3 (the band). What may lie behind it is a mixture again, with
# other weights and narrower clusters, so the exact answer can be sampled: the first
# panel. The others know the data's denoiser and the observation:
#
# - ``DDNM`` puts what was seen into each prediction
#   (`Wang et al. 2022 <https://arxiv.org/abs/2212.00490>`_),
# - ``pigdm`` follows the slope of the observation's likelihood through the denoiser,
#   and minds how unsure the prediction still is
#   (`Song et al. 2023 <https://openreview.net/forum?id=9_gsMA8MRKQ>`_),
# - ``dps`` leaves that out, and steps after each step of DDPM
#   (`Chung et al. 2022 <https://arxiv.org/abs/2209.14687>`_).
#
# All come to the band, and none finds the law in it. DDNM and pigdm would be exact for
# data that is one Gaussian, dps is not told how noisy the observation is and takes it
# at its word; all leave samples near the cluster on the left, which the observation
# rules out, and too few in the upper one. The shares are printed. It is worth knowing
# before one believes a restored image.

means = torch.tensor([[-1.0, -0.8], [0.2, 1.2], [1.2, -0.6]], dtype=torch.float64)
std, y, noise = 0.25, 0.6, 0.3
oracle = fs.Mixture(process, means, std)
seen = fs.Observation(lambda x: x[:, :1], torch.tensor([[y]]), noise)
evidence = (-0.5 * (y - means[:, 0]) ** 2 / (std**2 + noise**2)).exp()
trust = std**2 / (std**2 + noise**2)
centres = torch.stack([means[:, 0] + trust * (y - means[:, 0]), means[:, 1]], 1)
stds = torch.tensor([[noise * trust**0.5, std]]).expand(3, 2)
exact = fs.Mixture(process, centres, stds, evidence)

steps_down = fs.ReverseMean(inner=fs.DDPM(), step=0.1)
panels = {
    "exact": (exact, None),
    "DDNM": (fs.DDNM(oracle, seen, std=1.0), None),
    "pigdm": (fs.pigdm(oracle, seen, std=1.0), None),
    "dps": (fs.dps(oracle, seen, normalised=True), steps_down),
}
fig, axes = plt.subplots(1, 4, figsize=(9.6, 2.7), sharex=True, sharey=True)
for axis, (name, (denoiser, solver)) in zip(axes, panels.items(), strict=True):
    how = {"steps": 50, "shape": (600, 2), "dtype": torch.float64}
    x = fs.sample(denoiser, process, solver=solver, **how)
    shares = (x[:, None] - means).norm(dim=2).argmin(1).bincount(minlength=3) / len(x)
    print(f"{name:6} share of each cluster:", *(f"{share:.2f}" for share in shares))
    axis.axvspan(y - 2 * noise, y + 2 * noise, color="#E7EEF5", zorder=0)
    for centre in means:
        ring = plt.Circle(centre.tolist(), 2 * std, fill=False, color="#AAAAAA", lw=0.8)
        axis.add_patch(ring)
    axis.scatter(*x.T, s=3, linewidths=0)
    axis.set(title=name, xlabel="$x_1$", xlim=(-2.2, 2.2), ylim=(-2, 2))
axes[0].set_ylabel("$x_2$")
plt.show()

# %%
# On images
# ---------
#
# The shipped model, not told a label. One of its own images is hidden but for its right
# half (first row) or for the means of squares of 4 x 4 pixels (second row), with a
# little noise. Then three samples of what it was: other noises, other guesses, the same
# observation. DDNM in 20 calls.

model = fs.load()
prior = model.denoiser(None)
how = {"steps": 8, "shape": (1, *model.shape), "seed": 3}
truth = fs.sample(model.denoiser("Ankle boot"), model.process, **how)
operators = {  # and how to show what they leave
    "right half": (lambda x: x[..., 14:], torch.nn.ConstantPad2d((14, 0, 0, 0), -1.0)),
    "4 x 4 means": (torch.nn.AvgPool2d(4), torch.nn.Upsample(scale_factor=4)),
}
fig, axes = plt.subplots(2, 5, figsize=(7.4, 3.2))
for line, (name, (operator, show)) in zip(axes, operators.items(), strict=True):
    clean = operator(truth)
    eps = fs.Noise(seed=9).normal("initial", 0, clean.shape)
    seen = fs.Observation(operator, clean + 0.05 * eps, 0.05)
    how = {"steps": 20, "shape": (3, *model.shape), "seed": 1}
    guesses = fs.sample(fs.DDNM(prior, seen, std=0.5), model.process, **how)
    for axis, image in zip(line, (truth[0], show(seen.y)[0], *guesses), strict=True):
        axis.imshow(image[0].numpy(), cmap="gray", vmin=-1, vmax=1)
        axis.set(xticks=[], yticks=[])
    line[0].set_ylabel(name)
titles = ("truth", "seen", "guess", "guess", "guess")
for axis, title in zip(axes[0], titles, strict=True):
    axis.set_title(title)
plt.show()
