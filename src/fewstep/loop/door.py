r"""The door to the loop: `tabulate` makes the table, `sample` draws the noise and runs it.

    process -> grid -> solver (writes a table, float64, before the run) -> sample (the only loop) -> states

Finiteness is looked at once, at the end; a run that failed is replayed with a look at each row, so that the error names
the row and its time.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.denoiser.about import about
from fewstep.denoiser.base import Denoises, as_denoiser, fingerprint, same_process
from fewstep.denoiser.compiled import compiled
from fewstep.denoiser.watch import watching
from fewstep.grid import GRIDS, Grid, as_grid
from fewstep.grid.spacing import ToZero
from fewstep.loop.drive import noises_of
from fewstep.loop.excess import warn_of_excess
from fewstep.loop.memory import Room, in_pieces
from fewstep.loop.parallel import Parallel
from fewstep.loop.range import in_range
from fewstep.loop.rows import SMALL
from fewstep.loop.start import finite_start, start_state, takes
from fewstep.loop.walk import After, Callback, Plan, _under_autograd, all_finite, look_at, walk
from fewstep.noise import Noise, NoiseSource, noise_source
from fewstep.process import Process
from fewstep.process.base import Memory, recalling
from fewstep.process.predict import PREDICTIONS
from fewstep.solver import DEFAULT_SOLVERS, DRIVERS, SOLVERS, Default, Solver
from fewstep.solver.driver.base import Driver
from fewstep.tableau import Tableau
from fewstep.tableau.kept import kept
from fewstep.terminal import telling
from fewstep.words import pick, typed, whole

__all__ = ["sample", "tabulate"]

REMEMBERED = 2**14  # numbers of a process, beyond which a table's runs begin to remember anew


@typed
def tabulate(
    solver: str | Solver | Driver | Callable[[], Any] | Tableau | Path | None,
    process: Process,
    *,
    grid: str | Tensor | Grid = "default",
    steps: int | None = None,
    nfe: int | None = None,
) -> Tableau:
    """The table of a solver on a process and a grid.

    Args:
        solver: a name in `SOLVERS`, a solver, a table (returned as it is) or a file that `Tableau.save` wrote; None is
            the default of the process's kind, in `DEFAULT_SOLVERS`.
        process: the process.
        grid: a name in `GRIDS`, a function (process, steps) -> times, or a decreasing tensor of times, used as given.
        steps: at most this many network calls (with a named grid; 10 when neither is given).
        nfe: exactly this many network calls, or refused.
    """
    if isinstance(solver, Path):
        solver = Tableau.load(solver)
    if isinstance(solver, Tableau):
        if grid != "default" or steps is not None or nfe is not None:
            raise ValueError("got a ready table with grid, steps or nfe, which it has already: leave them out")
        if solver.process != process:
            raise ValueError(f"got a table written for {solver.process} to run on {process}: tabulate the solver again")
        return solver
    if solver is None:
        solver = DEFAULT_SOLVERS[process.kind]
    if isinstance(solver, str):
        if solver not in SOLVERS and Path(solver).is_file():
            raise ValueError(f"got solver {solver!r}, which is no name but a file: give Path({solver!r})")
        solver = pick(SOLVERS, solver, "solver")
    solver = solver() if callable(solver) else solver
    if isinstance(solver, Driver):
        solver.tabulate(process, torch.tensor([process.t_max, process.t_min], dtype=torch.float64))
    if not isinstance(solver, Solver):
        raise ValueError(f"got a {type(solver).__name__} as solver: give a name, a Solver, a Tableau or a Path")
    if steps is not None and nfe is not None:
        raise ValueError(f"got steps={steps} and nfe={nfe}: give one of them")
    if isinstance(grid, str):  # of a function it is not known what else it depends on
        key = solver.on(process), grid, GRIDS.get(grid), steps, nfe
        return kept(key, lambda: _on_made_times(solver, process, grid, steps, nfe))
    if callable(grid) and not isinstance(grid, Tensor):
        return _on_made_times(solver, process, grid, steps, nfe)
    if steps is not None:
        raise ValueError(f"got steps={steps} with an explicit grid, whose length says the steps: give one of them")
    table = solver.tabulate(process, as_grid(grid, process, None))
    if nfe is not None and table.nfe != nfe:
        raise ValueError(
            f"got nfe={nfe} with a grid on which this solver takes {table.nfe} calls: give nfe={table.nfe}"
        )
    return table


def _on_made_times(solver: Solver, process: Process, grid: str | Grid, steps: int | None, nfe: int | None) -> Tableau:
    """The table on a grid that is made for as many intervals as the calls allow."""
    made = solver.grid(grid) if isinstance(grid, str) else grid
    if isinstance(grid, ToZero) and grid.grid is GRIDS["default"]:
        made = replace(grid, grid=solver.grid("default"))
    ends = Memory(process, [process.t_max, process.t_min])
    with recalling(ends) if process.kind == "scalar" else nullcontext():
        table = solver.tabulate(process, as_grid(made, process, intervals(solver, process, steps, nfe)))
    if table.nfe != nfe if nfe is not None else table.nfe > (steps or 10):
        asked = f"nfe={nfe}" if nfe is not None else f"steps={steps or 10}"
        raise ValueError(f"got {asked} and a grid function on whose times this solver takes {table.nfe} calls")
    return table


@typed
def sample(
    denoiser: Denoises,
    process: Process,
    *,
    solver: str | Solver | Driver | Callable[[], Any] | Tableau | Path | None = None,
    grid: str | Tensor | Grid = "default",
    steps: int | None = None,
    nfe: int | None = None,
    shape: tuple[int, ...] | None = None,
    x: Tensor | None = None,
    seed: int = 0,
    first: int = 0,
    noise: Noise | NoiseSource | torch.Generator | Tensor | None = None,
    given: Mapping[str, Tensor] | None = None,
    final: str = "state",
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    callback: Callback | None = None,
    after: After | None = None,
    differentiable: bool = False,
    parallel: Parallel | bool | int | None = None,
    memory: int | str | Room | None = None,
    compile: bool = False,
    progress: bool | Callable[[float], object] = True,
) -> Tensor:
    """Samples: from noise, or from a given state, down the grid.

    Args:
        denoiser: (z, t) -> x0_hat in data space, a tensor (or a mapping with "x0" and further heads). The state it is
            given is valid during the call only: later rows may be written into it.
        process: the process.
        solver, grid, steps, nfe: see `tabulate`.
        shape: (batch, *data shape); the start is drawn from N(0, Sigma) at the grid's first time.
        x: the start state (batch, *state shape) instead of a shape; its dtype and device are kept.
        seed: the seed of the counter-based noise; sample i of a batch is number `first` + i of that seed.
        first: the number of the batch's first sample.
        noise: a `torch.Generator`, a ready tensor (n_noises, batch, *state) or a noise source instead of the seed.
        given: tensors for the table's given rows besides the start.
        final: "state" returns the state at the last time; "denoise" spends one more call on x0_hat there.
        dtype: of the state when `shape` is given (float32 or float64), whatever the network's is.
        device: where the state lives when `shape` is given.
        callback: called after each row that makes x0_hat with (row, t, state, x0_hat); treat the tensors as
            read-only.
        after: the hook (row, t, z) -> z on every made row.
        differentiable: keeps autograd through the run (and the history out of place).
        parallel: True, a window or a `Parallel`: run the table by Picard iteration, many calls at a time.
        memory: the most that the process may hold, in bytes or as "4GiB": a call of the network takes as many samples
            of the batch as fit, see `fewstep.loop.memory`. None is the whole batch at once.
        compile: run the network, and rows of large states, through `torch.compile`; the first call takes a minute.
        progress: show a bar on a terminal when the run takes longer than two seconds; or a function that is told the
            share of the run that is done, 0 to 1.

    Drivers (adaptive steps) take the grid's two ends, and `steps` as the most network calls of a sample; `solve` says
    what became of each sample where this raises a ValueError.

    Returns:
        The state (batch, *state shape) at the last time of the grid; `process.to_data` takes it to data space. With
        final="denoise", x0_hat in data space. Samples of the default solver end within the range that a network tells
        of its data, as loaded pictures do, on scalar processes (`fewstep.loop.range`); no gradient passes where an
        entry was set into it.
    """
    if final not in ("state", "denoise"):
        raise ValueError(f"got final={final!r}: choose state or denoise")
    if as_driver(solver) is not None or parallel:
        from fewstep.loop.solve import solve

        finite_start(x)
        if callback is not None or after is not None or differentiable:
            raise ValueError(
                "got callback, after or differentiable with a driver or parallel: they have none, leave it"
            )
        outcome = solve(
            denoiser, process, solver=solver, grid=grid, steps=steps, nfe=nfe, shape=shape, x=x, seed=seed, first=first,
            noise=noise, given=given, final=final, dtype=dtype, device=device, parallel=parallel,
            memory=memory, compile=compile, progress=progress
        )  # fmt: skip
        if not outcome.ok:
            raise ValueError(str(outcome))
        return outcome.state
    denoiser = as_denoiser(denoiser)
    same_process(denoiser, process)
    finite_start(x)
    takes("callback", callback, 4)
    takes("after", after, 3)
    budget = one_less(final, steps, nfe)
    table = tabulate(informed(solver, denoiser, sample_shape(process, shape, x)), process, grid=grid, **budget)
    same_model(denoiser, table)
    warn_of_excess(table)
    source = noise_source(noise, seed, first)
    with recollection(table, process):
        start, drawn = start_state(process, table.rows[0].t, shape, x, source, dtype, device), source.snapshot()
        made = in_pieces(compiled(denoiser) if compile else denoiser, memory, start)
        z = on_table(
            table, made, start, source, given=given, final=final, callback=callback, after=after,
            differentiable=differentiable, compile=compile, progress=progress, drawn=drawn
        )  # fmt: skip
    return in_range(denoiser, process, z, float(table.grid[-1]), solver=table.solver, final=final)


def recollection(table: Tableau, process: Process) -> AbstractContextManager[None]:
    """Where the numbers of a scalar process, which runs of a table ask for again and again, are remembered with it."""
    if process.kind != "scalar":
        return nullcontext()
    memory = table.notes.get("memory")
    if memory is None or memory.process is not process or len(memory.answers) > REMEMBERED:
        times = [table.rows[0].t, *(row.at for row in table.rows if row.at is not None)]
        memory = table.notes["memory"] = Memory(process, times)
    return recalling(memory)


def on_table(
    table: Tableau,
    denoiser: Any,
    start: Tensor,
    source: NoiseSource,
    *,
    given: Mapping[str, Tensor] | None = None,
    final: str = "state",
    callback: Callback | None = None,
    after: After | None = None,
    differentiable: bool = False,
    compile: bool = False,
    progress: bool | Callable[[float], object] = True,
    drawn: Any = None,
    strict: bool = True,
) -> Tensor:
    """The end of a table's run from a start; see `sample`.

    `strict` raises a ValueError where a sample is not finite, from a replay that starts with the source as `drawn`, a
    snapshot, has it; without it the samples that are not are left to the caller.
    """
    denoiser = as_denoiser(denoiser)
    grad = denoiser.needs_grad
    if not differentiable and (start.numel() > SMALL or start.device.type != "cpu"):  # below, it saves nothing
        table = on_raw_outputs(table, denoiser)
    plan = Plan.of(
        table, denoiser, like=start, reuse=not differentiable, compile=compile, grad=grad and not differentiable
    )
    watched = callback is not None or after is not None  # who may use the tensors outside: no inference tensors
    plain = grad or watched or compile  # nor where a graph would be made for those and another one for the start
    mode = nullcontext() if differentiable else torch.no_grad() if plain else torch.inference_mode()

    last = denoiser.at(float(table.grid[-1])) if final == "denoise" else None
    last = _under_autograd(last) if last and grad and not differentiable else last

    def run(*, look: bool, callback: Callback | None, tick: Callable[[], object] | None) -> Tensor:
        noises = noises_of(table, source, tuple(start.shape), start.dtype, start.device)
        z = walk(plan, start, noises, given=given, callback=callback, after=after, tick=tick, look=look)
        if last is None:
            return z
        d = last(z)
        d = d["x0"] if isinstance(d, Mapping) else d
        if tick is not None:
            tick()
        if look:
            look_at(
                d, f"the network returned values that are not finite in the last call (t = {float(table.grid[-1]):g})"
            )
        return d

    with mode, watching():
        calls, done = table.nfe + (final == "denoise"), count(1)
        with telling(progress, "sampling", total=calls) as tell:
            z = run(look=False, callback=callback, tick=lambda: tell(next(done) / calls))
        if strict and not all_finite(z):
            source.restore(drawn)
            run(look=True, callback=None, tick=None)
            raise ValueError("the samples are not finite, but a replay of the run was: is the denoiser deterministic?")
    return z.clone() if z.is_inference() and not torch.is_inference_mode_enabled() else z


def on_raw_outputs(table: Tableau, denoiser: Any) -> Tableau:
    """The same sampler on what the network returns, where that takes fewer passes over a state than converting it.

    A conversion x0 = p z + q F takes two passes, and so does a derived head. In terms of F there is none, but a row
    that reads an output reads its state too.
    """
    predicts = as_denoiser(denoiser).predicts
    if table.output != "x0" or predicts == "data" or predicts not in PREDICTIONS or table.process.kind == "block":
        return table
    heads, raw = table.notes.get(predicts, (None, None))
    if heads != table.heads:
        raw = table.in_terms_of(predicts) if _shorter(table, predicts) else None
        table.notes[predicts] = dict(table.heads), raw
    return raw or table


def _shorter(table: Tableau, predicts: str) -> bool:
    """Whether the rows read fewer tensors in terms of what a network predicts."""
    more = 0
    for row in table.rows:
        outputs = [s for s in row.form.terms if s[0] == "y"]
        with_state = {("z", s[1]) for s in outputs if s[2] == "x0" or (s[2] == "noise" and predicts != "noise")}
        more += len(with_state - set(row.form.terms)) + len({s[1] for s in outputs}) - len(outputs)
    return more < 2 * (table.nfe + len(table.heads))


def sample_shape(process: Process, shape: tuple[int, ...] | None, x: Tensor | None) -> Sequence[int]:
    """The shape of a sample in data space; () where neither a shape nor a start says it."""
    if shape is not None or x is None or x.ndim < 2 or not len(x):
        return shape[1:] if isinstance(shape, tuple | list) else ()
    return process.to_data(x[:1]).shape[1:]


def informed(solver: Any, denoiser: Any, shape: Sequence[int]) -> Any:
    """The default solver with what a denoiser and the shape of a sample say; any other as it is.

    A default whose options are set already is another.
    """
    if solver in (None, "default", Default, Default()):
        size = math.prod(shape) if shape else Default().size
        return Default(size=max(size, 1), **about(denoiser))
    return solver


def as_driver(solver: Any) -> Driver | None:
    """The driver that a name, a driver or what makes one says, or None."""
    made = DRIVERS.get(solver) if isinstance(solver, str) else solver
    made = made() if callable(made) else made
    return made if isinstance(made, Driver) else None


def intervals(solver: Solver | Driver, process: Process, steps: int | None, nfe: int | None) -> int:
    """Grid intervals for at most `steps`, or exactly `nfe`, network calls."""
    asked = nfe if nfe is not None else 10 if steps is None else steps
    label = "nfe" if nfe is not None else "steps"
    asked = whole(label, asked)
    to_zero = float(process.log_snr(process.t_min)) == math.inf
    count = asked
    while count > 0 and solver.calls(count, to_zero=to_zero) > asked:
        count -= 1
    fewer = solver.calls(count, to_zero=to_zero) if count else None
    more = solver.calls(count + 1, to_zero=to_zero)
    if count == 0:
        raise ValueError(
            f"got {label}={asked} for {type(solver).__name__}, which takes at least {more} calls: give {more}"
        )
    if nfe is not None and fewer != nfe:
        raise ValueError(
            f"got nfe={nfe} for {type(solver).__name__}, which takes {fewer} or {more} calls: give one of them"
        )
    return count


def same_model(denoiser: Any, table: Tableau) -> None:
    """Warns of a table that was fitted to other weights than those it is run with, where both tell."""
    theirs = (table.card or {}).get("weights")
    if theirs and (ours := fingerprint(denoiser)) and ours != theirs:
        warnings.warn(
            f"got a table fitted to the weights {theirs[:12]} for the weights {ours[:12]}: it runs, but its numbers "
            "were made for another model; fit one to this model with `fewstep fit`",
            stacklevel=4,
        )


def one_less(final: str, steps: int | None, nfe: int | None) -> dict[str, int | None]:
    """The calls left for the table when the last one is spent on x0_hat."""
    if final == "state":
        return {"steps": steps, "nfe": nfe}
    left = {"steps": steps, "nfe": nfe}
    for label, value in left.items():
        if value is not None and whole(label, value) == 1:
            raise ValueError(
                f"got {label}=1 with final='denoise', which spends one call after the table: give at least 2"
            )
        left[label] = None if value is None else value - 1
    return left
