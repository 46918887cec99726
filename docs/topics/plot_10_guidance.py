r"""
Guidance
========

A conditional model draws what it was told. *Guidance* makes it insist: it moves the
prediction away from what the model would say without the condition,

.. math:: D = D_u + w\,(D_c - D_u),

(classifier-free guidance, `Ho, Salimans 2022 <https://arxiv.org/abs/2207.12598>`_).
Here w = 0 is the model without the condition, w = 1 the conditional model, and beyond
that it is told to exaggerate. Since only the prediction changes, guidance is a denoiser
around denoisers, and every solver runs with it.
"""

import matplotlib.pyplot as plt
import torch

import fewstep as fs

process = fs.VP()
centres = torch.tensor([[x, y] for y in (-1.0, 1.0) for x in (-1.6, 0.0, 1.6)])
everything = fs.Mixture(process, centres, 0.3)
left = fs.Mixture(process, centres[[0, 3]], 0.3)

# %%
# w = 1 is exact
# --------------
#
# The data are six clusters; the class is the left column. Any classifier of noisy
# states can guide, too: by Bayes' rule the score of the conditional law is the model's
# plus the slope of log p(class | z) (`Dhariwal, Nichol 2021
# <https://arxiv.org/abs/2105.05233>`_). For a mixture that probability is known
# exactly, and with w = 1 the classifier makes the same samples as the conditional
# model, to rounding.


def log_prob(z, t):
    """The log of p(left | z), up to the constant 1/3."""
    return fs.marginal_log_prob(left, z, t) - fs.marginal_log_prob(everything, z, t)


how = {"steps": 20, "shape": (600, 2), "seed": 0, "dtype": torch.float64}
told = fs.sample(left, process, **how)
guided = fs.sample(fs.ClassifierGuided(everything, log_prob, 1.0), process, **how)
off = float((guided - told).abs().max())
print(f"classifier, w = 1, against the conditional model: {off:.0e}")

# %%
# More than 1: surer, and poorer
# ------------------------------
#
# Circles are the clusters, two deviations wide. At w = 3 all samples are pushed away
# from the other columns: to the left, towards the edge of the data, and into a narrower
# heap; at w = 8 out of it. That is the trade of guidance: the class is surer, the
# variety is gone. The lower row shows four remedies: guidance inside an interval of
# times only (`Kynkaanniemi et al. 2024 <https://arxiv.org/abs/2404.07724>`_), APG with
# a limited update (`Sadat et al. 2024 <https://arxiv.org/abs/2410.02416>`_), CFG++,
# which keeps the model's own noise in the step (`Chung et al. 2024
# <https://arxiv.org/abs/2406.08070>`_), and the simplest, a smaller w.

panels = {
    "w = 0": (everything, None),
    "w = 1": (left, None),
    "w = 3": (fs.guide(left, everything, 3.0), None),
    "w = 8": (fs.guide(left, everything, 8.0), None),
    "w = 3, t < 0.3": (fs.guide(left, everything, 3.0, interval=(0.0, 0.3)), None),
    "w = 3, APG": (fs.guide(left, everything, 3.0, rule=fs.APG(norm=0.3)), None),
    "CFG++, 0.6": (fs.guide(left, everything, 0.6), "ddim-cfgpp"),
    "w = 1.5": (fs.guide(left, everything, 1.5), None),
}
fig, axes = plt.subplots(2, 4, figsize=(9.6, 3.9), sharex=True, sharey=True)
for axis, (title, (denoiser, solver)) in zip(axes.flat, panels.items(), strict=True):
    x = fs.sample(denoiser, process, solver=solver, **how)
    for centre in centres:
        ring = plt.Circle(centre.tolist(), 0.6, fill=False, color="#AAAAAA", lw=0.8)
        axis.add_patch(ring)
    axis.scatter(*x.T, s=3, color="C0", linewidths=0)
    axis.set(title=title, xlim=(-4.2, 2.6), ylim=(-2.2, 2.2), aspect="equal")
plt.show()

# %%
# The trade as numbers
# --------------------
#
# For each w: how sure an exact classifier of clean data is of the class; how much of
# the class's width is left; and how far the middle has moved. Sureness is bought
# quickly, and from then on only the price rises. On pictures the same shows as better
# label accuracy and lower recall, measured on :doc:`the page on guidance </guidance>`.

scales = torch.linspace(0, 6, 13)
runs = [fs.sample(fs.guide(left, everything, float(w)), process, **how) for w in scales]
curves = {
    "mean p(class | sample)": [
        log_prob(x, process.t_min).exp().mean() / 3 for x in runs
    ],
    "deviation of $x_1$": [x[:, 0].std() for x in runs],
    "mean of $x_1$": [x[:, 0].mean() for x in runs],
}
fig, axes = plt.subplots(1, 3, figsize=(9.6, 2.8))
for axis, (label, curve) in zip(axes, curves.items(), strict=True):
    axis.plot(scales, curve, "o-")
    axis.axvline(1, color="gray", ls=":", lw=1)
    axis.set(xlabel="guidance scale w", ylabel=label)
axes[1].axhline(0.3, color="gray", ls=":", lw=1)
axes[2].axhline(-1.6, color="gray", ls=":", lw=1)
plt.show()
