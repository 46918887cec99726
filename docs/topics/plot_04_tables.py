r"""
A sampler is a table
====================

Once process, solver and grid are fixed, nothing about a run depends on the network
except what the network says. Every state is a sum of what came before,

.. math::
   z_k = \sum_{i<k} A_{ki}\, z_i + \sum_{j<k} B_{kj}\, D_j + \sum_l C_{kl}\, \xi_l,

of earlier states, of data predictions D and of fresh noises, with numbers A, B and C
that are known before the first call. ``fs.tabulate`` writes them down; the loop only
adds up. Numerical analysts call it a general linear method.
"""

import matplotlib.pyplot as plt
import torch

import fewstep as fs

process = fs.VP()
table = fs.tabulate("dpmpp-2m", process, steps=4)
print(table.explain())

# %%
# Tables drawn
# ------------
#
# One line a state, one column for everything it may read: states (z), predictions (D),
# noises (xi); blue adds, red takes away. DDIM reads the last state and the last
# prediction. DPM-Solver++ 2M reads one prediction more, with a negative weight: it
# continues a line. DDPM has a noise in every line, its own. UniPC writes some states
# twice: first predicted, then corrected with the call made at the prediction. What no
# later line reads is freed, so the picture also says how much memory a run takes.


def draw(axis, table, title):
    """The weights of a table as coloured squares."""
    kinds = {
        "z": "z",
        "y": "D",
        "xi": "ξ",
    }  # a term is ("z", k), ("y", j, "x0"), ("xi", l)
    made = table.rows[1:]
    terms = {term for row in made for term, _ in row.form}
    columns = sorted(terms, key=lambda term: (list(kinds).index(term[0]), term[1]))
    grid = torch.full((len(made), len(columns)), torch.nan)
    for k, row in enumerate(made):
        for term, weight in row.form:
            grid[k, columns.index(term)] = float(weight)
    axis.imshow(grid.numpy(), cmap="RdBu", vmin=-1.2, vmax=1.2)
    names = [f"{kinds[term[0]]}{term[1]}" for term in columns]
    axis.set_xticks(range(len(names)), names, fontsize=6.5, rotation=90)
    rows = range(len(made))
    axis.set_yticks(rows, [f"z{k + 1}" for k in rows], fontsize=7)
    axis.set_title(title, fontsize=9)
    axis.grid(False)


fig, axes = plt.subplots(2, 2, figsize=(8.5, 5.2))
names = ("ddim", "dpmpp-2m", "ddpm", "unipc-2")
for axis, solver in zip(axes.flat, names, strict=True):
    draw(axis, fs.tabulate(solver, process, steps=6), solver)
plt.show()

# %%
# Every state from the start
# --------------------------
#
# ``eliminate()`` puts each line into the next until states are written from the start,
# the predictions and the noises alone. The number of columns falls and the table fills:
# DDIM, too, weighs all predictions it has ever seen. Late ones count most. In this form
# one look tells what a run in parallel needs, and what there is to fit to a model.

fig, axes = plt.subplots(1, 2, figsize=(8.5, 2.7))
for axis, solver in zip(axes, ("ddim", "dpmpp-2m"), strict=True):
    full = fs.tabulate(solver, process, steps=6).eliminate()
    draw(axis, full, f"{solver}, eliminated")
plt.show()

# %%
# Two names, one sampler
# ----------------------
#
# Two solvers are the same sampler exactly if their eliminated tables are equal. So an
# equivalence from the literature is a comparison of numbers: here the largest
# difference between the last lines of nine solvers, as a power of ten. The dark block
# is one method under six names: DDIM is DPM-Solver-1 (`Lu et al. 2022
# <https://arxiv.org/abs/2206.00927>`_), DEIS of order 0 (`Zhang, Chen 2023
# <https://arxiv.org/abs/2204.13902>`_), Euler's method in sigma/alpha (section 4.3 of
# `Song, Meng, Ermon 2021 <https://arxiv.org/abs/2010.02502>`_), the exponential
# multistep method with one point, and gDDIM on a process of numbers. UniPC with one
# point is another one.

solvers = {
    "DDIM": "ddim",
    "DPM-Solver-1": "dpm-solver-1",
    "DEIS, order 0": "deis-tab-0",
    "Euler in σ/α": fs.RungeKutta(method="euler", form="noise", clock="rho"),
    "multistep-1": "multistep-1",
    "gDDIM-0": "gddim-0",
    "Euler in t": "euler",
    "UniPC-1": "unipc-1",
    "DPM-Solver++ 2M": "dpmpp-2m",
}


def last_line(solver):
    """The weights of the start and of the six predictions in the last state."""
    rows = fs.tabulate(solver, process, steps=6).eliminate().rows
    calls = [k for k, row in enumerate(rows) if row.at is not None]
    terms = [("z", 0), *(("y", j, "x0") for j in calls)]
    weights = [rows[-1].form.terms.get(term, 0.0) for term in terms]
    return torch.tensor(weights, dtype=torch.float64)


lines = torch.stack([last_line(solver) for solver in solvers.values()])
apart = (lines[:, None] - lines).abs().amax(2).clamp(min=1e-16).log10()
fig, axis = plt.subplots(figsize=(6.2, 4.6))
image = axis.imshow(apart.numpy(), cmap="Blues_r", vmin=-16, vmax=0)
axis.set_xticks(range(len(solvers)), solvers, rotation=40, ha="right")
axis.set_yticks(range(len(solvers)), solvers)
axis.grid(False)
fig.colorbar(image, label="largest difference of weights, log10")
plt.show()

# %%
# In the network's own terms
# --------------------------
#
# A network that predicts v or noise needs no conversion at every call: ``in_terms_of``
# rewrites the table for its raw output, once. The weights are others, the sampler is
# the same. A table is saved in a few kB and runs elsewhere as it stands; ``fs.fit``
# changes its numbers to suit one model.

print(fs.tabulate("ddim", process, steps=3).in_terms_of("v").explain())
