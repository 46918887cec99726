"""Adaptive steps: each sample takes its own, and the run says what became of each.

    python examples/adaptive.py

Dormand-Prince 5(4) on the probability-flow ODE of a two-dimensional mixture, in float64, to three tolerances. With too
few calls allowed a run ends early, in a sentence and not in an error.
"""

from __future__ import annotations

import torch

import fewstep as fs

process = fs.VP()
means = torch.tensor([[-1.5, 0.0], [1.0, 1.0], [1.2, -1.0]], dtype=torch.float64)
denoiser = fs.Mixture(process, means, 0.15)
start = torch.randn(16, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

exact = fs.sample(denoiser, process, solver="multistep-pc-3", grid="log-snr", steps=200, x=start, final="state")
print(f"{'tolerance':>9} {'fewest calls':>13} {'most':>5} {'rounds':>7} {'error':>8}")
for tolerance in (1e-2, 1e-4, 1e-6):
    outcome = fs.solve(denoiser, process, solver=fs.RK45(rtol=tolerance, atol=tolerance), x=start)
    error = float((outcome.state - exact).abs().max())
    print(f"{tolerance:9.0e} {outcome.calls.min():13} {outcome.calls.max():5} {outcome.rounds:7} {error:8.1e}")
assert outcome.ok
assert error < 1e-4

# What a sample did is a table like any other: it is replayed without the driver, to rounding.
slowest = int(outcome.calls.argmax())
table = outcome.table(slowest)
again = fs.sample(denoiser, process, solver=table, x=start[slowest : slowest + 1])
assert torch.allclose(again, outcome.state[slowest : slowest + 1], atol=1e-10)
print(f"sample {slowest} is the table of {len(table.grid) - 1} steps that it took")

# A batch mate changes nothing.
alone = fs.solve(denoiser, process, solver=fs.RK45(rtol=1e-6, atol=1e-6), x=start[slowest : slowest + 1])
assert alone.calls[0] == outcome.calls[slowest]
assert torch.allclose(alone.state, again, atol=1e-10)

short = fs.solve(denoiser, process, solver=fs.RK45(rtol=1e-12, atol=1e-12), steps=60, x=start)
print(short)
assert set(short.status) == {"too many calls"}
