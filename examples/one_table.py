"""A sampler is a table: write it, read it, save it, compare it with another one.

    python examples/one_table.py

DDIM with eta = 0 is the Euler method on dx/d(sigma/alpha) = eps with x = z/alpha (Song et al. 2021, section 4.3). Two
solvers are the same sampler when their tables agree after `eliminate`, which writes every state from the start, the
data predictions and the noises alone.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import torch

import fewstep as fs

process = fs.VP()
table = fs.tabulate("unipc-2", process, steps=4)
print(table.explain())

with TemporaryDirectory() as folder:
    file = Path(folder) / "unipc-2.safetensors"
    table.save(file)
    print(f"saved in {file.stat().st_size} bytes")
    loaded = fs.Tableau.load(file)
denoiser = fs.Gaussian(process, mean=0.6, std=0.3)
a, b = (fs.sample(denoiser, process, solver=t, shape=(8, 4), seed=1) for t in (table, loaded))
assert torch.equal(a, b)

how = {"steps": 6, "final": "state"}  # at sigma = 0 both end in the last prediction
ddim = fs.tabulate(fs.DDIM(eta=0.0), process, **how).eliminate()
euler = fs.tabulate(fs.RungeKutta(method="euler", form="noise", clock="rho"), process, **how).eliminate()
worst = 0.0
for one, other in zip(ddim.rows, euler.rows, strict=True):
    assert set(one.form.terms) == set(other.form.terms)
    worst = max([worst, *(abs(c - other.form.terms[symbol]) for symbol, c in one.form)])
print(f"DDIM and Euler in sigma/alpha: the numbers of the two tables agree to {worst:.1e}")
assert worst < 1e-12
