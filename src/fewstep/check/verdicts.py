"""The verdicts on a solver that writes tables: what each promise is held against."""

from __future__ import annotations

import math
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from fewstep.check.cell import Cell, Rounded, slope
from fewstep.check.exact import grid, singular_ends, span
from fewstep.check.exactness import check_moments, check_point_mass, covariance, point_mass
from fewstep.check.report import Verdict
from fewstep.loop import sample
from fewstep.loop.plan import Plan
from fewstep.loop.walk import walk
from fewstep.process.bridge import boots
from fewstep.process.operator import magnitude
from fewstep.solver.base import calls_of
from fewstep.tableau import Tableau
from fewstep.tableau.kept import forget

__all__ = ["VERDICTS", "Finding", "verdicts"]

Finding = Callable[[Cell], Verdict]

BAND = 0.25  # a measured slope may stay below the claimed order by this much
ROUNDING = 1e-11  # errors below it say nothing about an order
FINEST = 512  # where a slope that is not reached yet is given up
FEW = (1, 2, 3, 5, 10)


def verdicts(cell: Cell) -> Iterator[Verdict]:
    """All verdicts of a cell; one whose process the solver does not cover has a single one, its reason."""
    return cell.verdicts(VERDICTS | ({"compile": compiled} if cell.compile else {}), lambda: cell.table(3))


def calls(cell: Cell) -> Verdict:
    """What `calls` says, what the table holds, and what a run counts are one number."""
    for steps in (*FEW, _ladder(cell)[1]):
        said, held = cell.solver.calls(steps, to_zero=False), cell.table(steps).nfe
        made = (cell.count(steps) if steps in FEW else None) or held  # a run that breaks off is for `finite` to judge
        if not said == held == made:
            sentence = f"{steps} steps: it says {said} calls, its table holds {held}, a run makes {made}"
            return cell.judge("calls", False, sentence, held if held != said else made, said)
    last = cell.solver.calls(10, to_zero=False)
    return cell.judge("calls", True, "network calls of 10 steps, said, tabulated and counted", last, last)


def finite(cell: Cell) -> Verdict:
    """One step to 64 and more: coefficients and samples are finite."""
    stations = range(1, 65) if cell.thorough else (*FEW, *_ladder(cell))
    for steps in stations:
        try:
            cell.run(steps)
        except ValueError as error:
            return cell.judge("finite", False, f"{steps} steps: {error}", steps)
    said = "1 to 64" if cell.thorough else ", ".join(map(str, stations))
    return cell.judge("finite", True, f"all of {said} steps end in finite states", max(stations))


def repeat(cell: Cell) -> Verdict:
    """The same table twice, and the same bits from the same seed."""
    table = cell.table(5)
    forget()
    again = cell.solver.tabulate(cell.process, grid(cell.process, 5))
    if again != table:
        return cell.judge("repeat", False, "it writes another table when asked again")
    return cell.repeats(cell.draw(table, 3), cell.draw(again, 3))


def batch(cell: Cell) -> Verdict:
    """A sample is the same alone, among three and among 64."""
    table = cell.table(5)
    whole = cell.draw(table, 64)
    parts = {n: cell.draw(table, n, first=7) for n in (1, 3)}
    off = max(float((part - whole[7 : 7 + n]).abs().max()) for n, part in parts.items())
    return cell.judge("batch", off < 1e-10, "a sample alone or among 3 differs by so much from itself among 64", off, 0)


def dtype(cell: Cell) -> Verdict:
    """float32 states stay float32 and near float64; a bfloat16 network moves them by its own rounding."""
    table, x = cell.table(10), cell.problem.start
    run = lambda d, x: sample(d, cell.process, solver=table, x=x, seed=5)  # noqa: E731
    exact, single, half = run(cell.denoiser, x), run(cell.denoiser, x.float()), run(Rounded(cell.denoiser), x.float())
    if (exact.dtype, single.dtype, half.dtype) != (torch.float64, torch.float32, torch.float32):
        return cell.judge("dtype", False, f"float32 states come back as {single.dtype}, {half.dtype}")
    off = [float((z.double() - exact).norm() / exact.norm()) for z in (single, half)]
    good = off[0] < 1e-4 and off[1] < 0.1
    sentence = f"off by {off[0]:.0e} with float32 states (at most 1e-4), {off[1]:.0e} with a bfloat16 network (0.1)"
    return cell.judge("dtype", good, sentence, off[0], 1e-4)


def mass(cell: Cell) -> Verdict:
    """Data that is one point: exact where declared, a residual of the declared order elsewhere."""
    s, name = cell.solver, "point-mass"
    if cell.process.kind in s.point_mass:
        try:
            check_point_mass(cell.table(10), tolerance=1e-10)
        except ValueError as error:
            return cell.judge(name, False, str(error), claimed=1e-10)
        return cell.judge(name, True, "one point is carried exactly, in every row", 0, 1e-10)
    if s.order == 0:
        return cell.skip(name, "it declares order 0: it samples another law on purpose")
    low, high = span(cell.process)
    width = 0.4 * (high - low)  # a moderate part, where the residual is of its order from 12 steps on
    ends = ((low + high - width) / 2, (low + high + width) / 2)

    def residual(steps: int) -> float:
        """How far one point is off at the last row, relative to the standard deviation it should have."""
        table = s.tabulate(cell.process, grid(cell.process, steps, *ends))
        t, (m, r, cs) = table.rows[-1].t, point_mass(table)[-1]
        sigma = cell.process.Sigma(t)
        return max(magnitude(m - cell.process.M(t)), magnitude(covariance(r, cs) - sigma) / magnitude(sigma))

    found, (_, many), _ = _slope(residual, s.order, (12, 48))
    good = many < 1e-10 or found > s.order - BAND
    return cell.judge(name, good, f"order at which one point's residual ({many:.0e}) shrinks", found, s.order)


def moments(cell: Cell) -> Verdict:
    """Every row integrates polynomial predictions up to the degree it declares."""
    declared = cell.solver.moments
    if declared is None:
        return cell.skip("moments", "it declares no polynomial that its rows integrate exactly")
    # a tabulated process has kinks in t, which no quadrature here puts its panels on
    tolerance = 1e-4 if hasattr(cell.process, "alphas_cumprod") and declared.clock == "t" else 1e-9
    try:
        check_moments(cell.table(10), tolerance=tolerance)
    except ValueError as error:
        return cell.judge("moments", False, str(error), claimed=max(declared.degrees))
    top = max(declared.degrees)
    return cell.judge("moments", True, f"degree in {declared.clock} up to which rows are exact", top, top)


def order(cell: Cell) -> Verdict:
    """The error against the exact answer falls with the declared order, from a moderate number of steps on."""
    s, name = cell.solver, "weak-order" if cell.solver.stochastic else "order"
    if s.order == 0:
        return cell.skip(name, "it declares order 0: it samples another law on purpose")
    found, errors, steps = _slope(cell.error, s.order, _ladder(cell))
    good = found > s.order - BAND
    what = "law on a Gaussian" if s.stochastic else "states on a mixture"
    sentence = f"errors {errors[0]:.1e} and {errors[1]:.1e} at {steps} and {4 * steps} steps, {what}"
    return cell.judge(name, good, sentence, found, s.order)


def strong(cell: Cell) -> Verdict:
    """Nested grids of one seed follow one Brownian path, and their runs approach each other.

    The noise is additive, so the strong order is 1, or what the solver gives as `strong_order`; and 1/2 where the last
    step adds no noise, because what it leaves out has the size of its square root.
    """
    name, s = "strong-order", cell.solver
    if not s.stochastic:
        return cell.skip(name, "it adds no noise")
    if s.order == 0:
        return cell.skip(name, "it declares order 0: it samples another law on purpose")
    if any(n.stream != "path" for n in cell.table(5).noises):
        return cell.skip(name, "its noise is drawn by index, not from the path, so grids share none")
    silent = not any(symbol[0] == "xi" for symbol, _ in cell.table(5).rows[-1].form)
    claim = float(getattr(s, "strong_order", 0.5 if silent else 1.0))
    if claim == 0:
        return cell.skip(name, "it declares no strong order")

    def gap(steps: int) -> float:
        coarse, fine = cell.run(steps // 2), cell.run(steps)
        return float((coarse - fine).norm() / fine.norm())

    found, gaps, steps = _slope(gap, claim, _ladder(cell))
    sentence = f"runs at {steps // 2} and {steps} steps differ by {gaps[0]:.1e}, four times finer by {gaps[1]:.1e}"
    return cell.judge(name, found > claim - BAND, sentence, found, claim)


def marginals(cell: Cell) -> Verdict:
    """At a quarter, half, three quarters and the end of the way, the law of Gaussian data comes to the closed form."""
    s = cell.solver
    if s.order == 0:
        return cell.skip("marginals", "it declares order 0: it samples another law on purpose")

    def worst(steps: int) -> float:
        laws = cell.laws(steps)
        near = [min(laws, key=lambda t: abs(t - q)) for q in grid(cell.process, 4).tolist()[1:]]
        return max(laws[t] for t in near)

    found, errors, steps = _slope(worst, s.order, _ladder(cell))
    good = found > s.order - BAND
    more = f"then {errors[1]:.1e} at {4 * steps} steps"
    sentence = f"mean and covariance at four times are off by {errors[0]:.1e}, {more}"
    return cell.judge("marginals", good, sentence, found, s.order)


def ends(cell: Cell) -> Verdict:
    """Singular ends that are declared give finite tables that end on the data; the others are refused."""
    p, s, singular = cell.process, cell.solver, singular_ends(cell.process)
    if not singular:
        return cell.skip("ends", "the process has no end at which alpha or sigma is zero")
    tried = []
    for end, times in singular.items():
        boot = boots(p, times[0])
        if end not in s.ends and not boot:
            try:
                s.tabulate(p, torch.linspace(*times, 5, dtype=torch.float64))
            except ValueError:
                tried.append(f"{end} is refused")
                continue
            return cell.judge("ends", False, f"it does not declare {end}, and writes a table that has it")
        both = end == "sigma=0" and "alpha=0" in singular
        both = both and ("alpha=0" in s.ends or boots(p, singular["alpha=0"][0]))
        for first in (times[0], singular["alpha=0"][0]) if both else (times[0],):
            for steps in (1, 2, 5):
                table = s.tabulate(p, torch.linspace(first, times[1], steps + 1, dtype=torch.float64))
                if fault := _end_fault(cell, table, steps, to_zero=end == "sigma=0"):
                    return cell.judge("ends", False, f"{end}, {steps} steps from t = {first:g}: {fault}")
        tried.append("the pinned end is left" if boot else f"{end} is reached")
    return cell.judge("ends", True, ", ".join(tried))


def ten(cell: Cell) -> Verdict:
    """The error at ten network calls: reported, and held only to being one."""
    steps = cell.within(10)
    if steps == 0:
        return cell.skip("error-10", f"one step takes {cell.solver.calls(1, to_zero=False)} calls")
    found = cell.error(steps)
    what = "law on a Gaussian" if cell.solver.stochastic else "states on a mixture"
    return cell.judge("error-10", math.isfinite(found), f"error of {steps} steps, within 10 calls: {what}", found)


def compiled(cell: Cell) -> Verdict:
    """The walk through its table is one graph to `torch.compile`, and gives the same samples."""
    table, z = cell.table(3), cell.problem.start
    heads = dict.fromkeys(cell.solver.heads, 0.1)

    def network(z: Tensor, t: float) -> dict[str, Tensor]:
        x = cell.process.to_data(z).tanh()
        return {"x0": x, **{head: value * torch.ones_like(x) for head, value in heads.items()}}

    compiler = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++") or shutil.which("clang++")
    plan = Plan.of(table, network, like=z, reuse=False)
    g = torch.Generator().manual_seed(4)
    noises = [torch.randn(z.shape, dtype=z.dtype, generator=g) for _ in table.noises]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's remarks on caches it looks through
        back_end = "inductor" if compiler else "aot_eager"
        fast = torch.compile(partial(walk, plan), fullgraph=True, backend=back_end)(z, noises)
        off = float((fast - walk(plan, z, noises)).abs().max())
    how = "compiled" if compiler else "captured as one graph (no C++ compiler here, so nothing was compiled)"
    return cell.judge("compile", off < 1e-9, f"the walk {how} differs from the plain one by so much", off, 0)


VERDICTS: dict[str, Finding] = {
    "calls": calls, "finite": finite, "repeat": repeat, "batch": batch, "dtype": dtype, "point-mass": mass,
    "moments": moments, "order": order, "strong-order": strong, "marginals": marginals, "ends": ends, "error-10": ten,
}  # fmt: skip


def _ladder(cell: Cell) -> tuple[int, int]:
    """Two step counts, two doublings apart, above the rounding floor."""
    few = 16 if cell.solver.order >= 4 or cell.process.kind == "block" else 32
    return few, 4 * few


def _slope(
    error: Callable[[int], float], claim: float, ladder: tuple[int, int]
) -> tuple[float, tuple[float, float], int]:
    """The slope over two doublings; infinite where the error is rounding; below the claim, on finer grids."""
    few, many = ladder
    while True:
        errors = error(few), error(many)
        found = slope(*errors) if errors[1] > ROUNDING else math.inf
        if found > claim - BAND or 2 * many > FINEST:
            return found, errors, few
        few, many = 2 * few, 2 * many


def _end_fault(cell: Cell, table: Tableau, steps: int, *, to_zero: bool) -> str:
    """What is wrong with a run to or from a singular end; empty when nothing is."""
    said = calls_of(cell.solver, steps, to_zero=to_zero, boot=boots(cell.process, float(table.grid[0])))
    if table.nfe != said:
        return f"it says {said} calls and its table holds {table.nfe}"
    z = cell.draw(table, 4)
    if not bool(z.isfinite().all()) or float(z.abs().max()) > 1e3:
        return "the samples are not on the scale of the data"
    t = float(table.grid[-1])
    m, r, cs = point_mass(table)[-1]
    off = [magnitude(m - cell.process.M(t)), *(magnitude(c) for c in (r, *cs.values()))] if to_zero else [0.0]
    bound = 1e-9 if cell.process.kind in cell.solver.point_mass else 2.0
    return f"one point ends {max(off):.1e} from itself" if max(off) > bound else ""
