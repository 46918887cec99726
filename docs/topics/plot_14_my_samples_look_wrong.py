r"""
My samples look wrong
=====================

Six faults make nearly all wrong pictures, and each has a look of its own. All the rows
below are from one network, the shipped one, and one start; only what is said to the
sampler is wrong. Find yours and follow it, from the top:

1. Pale, flat, too large or cut off: the **scale**.
2. Noise with no picture in it: the **time** the network is told, or its **prediction**.
3. Noise with the right picture in it: the **process**, or a prediction near the right
   one.
4. A clean picture under a layer of grain: the **last step**.
5. Another or a worse picture with *more* steps: the **precision**.
6. None of these, and too bright, too alike or too smooth: guidance, or
   :doc:`too few calls </choosing>`.

Before looking at pictures ask the network: ``fs.check_prediction`` calls it a few times
and says what it looks like.
"""

import warnings

import matplotlib.pyplot as plt
import torch

import fewstep as fs

warnings.simplefilter("ignore")  # these faults are said, too; here they are seen
model = fs.load()  # trained on VP, predicts v, told the time as an index
process = model.process
net = model.denoiser([1, 3, 5, 7, 8, 9]).net  # as yours would be: (x, t) -> v
start = torch.randn(6, *model.shape, generator=torch.Generator().manual_seed(1))


def sample(process=process, predicts="v", time="index", x=start, **options):
    """Ten calls of the network, wrapped as it is said."""
    denoiser = fs.wrap(net, process, predicts=predicts, time=time)
    return fs.sample(denoiser, process, x=x, **{"steps": 10} | options)


def show(rows):
    """A row of pictures a fault."""
    fig, axes = plt.subplots(len(rows), 1, figsize=(6.4, 0.95 * len(rows)))
    for axis, (title, x) in zip(axes, rows.items(), strict=True):
        axis.imshow(torch.cat([*x[:, 0]], 1), cmap="gray", vmin=-1, vmax=1)
        axis.set_title(title, loc="left", fontsize=9)
        axis.set_axis_off()
    plt.show()


right = sample()

# %%
# Scale
# -----
#
# Data and noise have a size each. **Data in [0, 1]** shown as if in [-1, 1], or the
# other way round, is pale or cut off: ``x / 2 + 0.5`` before it is shown. A **start
# that is too small** loses its detail, **one too large** stays noise: the start is
# :math:`\sigma_{t_{max}}\,\epsilon`, which is 80 :math:`\epsilon` on EDM and
# :math:`\epsilon` on VP and flow. Give ``shape=`` in place of ``x=`` and it is right.
# For latents it matters too: they are multiplied by their autoencoder's own scale.

show(
    {
        "right": right,
        "shown in the wrong range": right / 2 + 0.5,
        "start of half the deviation": sample(x=start / 2),
        "start of twice the deviation": sample(x=start * 2),
    }
)

# %%
# Time and prediction
# -------------------
#
# A network that is told **t in [0, 1] where it knows indices 0 to 999** takes every
# state for a clean one; told the time **backwards** it takes noise for data. ``time=``
# says which of the conventions it is ("index", "t", "sigma", "log-sigma/4", or a
# function). A network of one **prediction read as another** returns a tensor of the
# right shape and the wrong meaning; of ``predicts=`` "noise", "data", "v" and "flow"
# one is right.

show(
    {
        'time="t" for a network of indices': sample(time="t"),
        "time backwards": sample(time=lambda t: 999 - 999 * t),
        'predicts="noise" for one of v': sample(predicts="noise"),
        'predicts="data" for one of v': sample(predicts="data"),
    }
)
wrong = fs.wrap(model.denoiser().net, process, predicts="data", time="index")
print(fs.check_prediction(wrong, model.shape).sentence)

# %%
# Process
# -------
#
# Where **alpha and sigma are those of another process**, the picture is there, and
# noise that the network was told is not: betas that are "linear" for "scaled_linear",
# the cosine of another paper, VP for a flow. The times agree at the ends only. Read it
# off the training code, or the scheduler's config (``fs.load`` does); two that differ
# only a little, as linear betas and a cosine, no check of the network tells apart.

show(
    {
        "right": right,
        "on the cosine schedule": sample(fs.Cosine()),
        "on the sub-VP process": sample(fs.SubVP()),
        "on a flow": sample(fs.Flow()),
    }
)

# %%
# Last step and precision
# -----------------------
#
# **A grid that ends before the noise does** leaves grain: at t = 0.07 here, a deviation
# of 0.23. The last step goes to sigma = 0 by default (``final="zero"``); times that are
# given end where they end. Grain is also what ``final="state"`` leaves on a process
# whose ``t_min`` is not small.
#
# **A state in half precision** loses what a short step adds, as it is less than the
# last bit: the more steps, the worse. The loop below is one that many people write;
# bfloat16 has 8 bits, and at 1 adds no 0.003. ``fs.sample`` keeps the state in float32
# whatever the network's dtype is.


def euler(steps, dtype):
    """Steps of DDIM, the state kept in a dtype."""
    denoiser, x = fs.wrap(net, process, predicts="v", time="index"), start.to(dtype)
    times = torch.linspace(process.t_max, process.t_min, steps + 1).tolist()
    for t, s in zip(times, times[1:], strict=False):
        with torch.no_grad():
            x0 = denoiser(x.float(), t)
        noise = (x.float() - process.alpha(t) * x0) / process.sigma(t)
        more = (process.alpha(s) - process.alpha(t)) * x0
        x = x + (more + (process.sigma(s) - process.sigma(t)) * noise).to(dtype)
    return x.float()


early = [1.0, 0.8, 0.6, 0.45, 0.3, 0.2, 0.12, 0.07]
show(
    {
        "right": right,
        "ends early, at t = 0.07": sample(grid=early, steps=None),
        "bfloat16 state, 20 steps": euler(20, torch.bfloat16),
        "bfloat16 state, 200 steps": euler(200, torch.bfloat16),
    }
)
