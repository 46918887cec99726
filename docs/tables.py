"""Writes the tables of docs/choosing.md, docs/systems.md, and what `fewstep list` prints.

The solvers come from the registry, the measured ones from benchmarks/results, the systems from their book.

    python docs/tables.py            # rewrites the blocks in place
    python docs/tables.py --check    # exit status 1 when a block is not what this would write

A block stands between `<!-- NAME: ... -->` and `<!-- end NAME -->`. Of each study the
file with the latest name is used.
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
import sys
from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path

import fewstep as fs
from fewstep.cli import listing
from fewstep.process import ALL_PROCESSES
from fewstep.process.bridge import Bridge
from fewstep.solver import ALIASES, names
from fewstep.solver.base import ALL_KINDS
from fewstep.systems import CHAPTERS, SYSTEMS, System, place
from fewstep.train.methods import METHODS

PAGE = Path(__file__).parent / "choosing.md"
MAP = Path(__file__).parent / "solvers.md"
BOOK = Path(__file__).parent / "systems.md"
RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"

WHEN = {
    "ddpm": "ancestral sampling, posterior variance; many calls",
    "ddpm-beta": "the same with the forward variance; many calls",
    "resshift": "ResShift's chain, whose noise is only added to; ancestral sampling otherwise",
    "momentum": "soft diffusion's momentum sampler: the same with all the noise that was added; many calls",
    "ddim": "the plain first-order step; `eta` adds noise; invertible in the limit",
    "analytic-ddpm": "ancestral sampling in few steps, with the best variance (`fewstep stats` first)",
    "analytic-ddim": "ddim and only the noise its prediction leaves out (`fewstep stats` first)",
    "sn-ddpm": "ancestral sampling with a network that also predicts the squared noise",
    "npr-ddpm": "the same with the squared error of its noise instead: right for an imperfect mean",
    "dpm-solver-v3": "few calls, tuned to a network by `fewstep stats`",
    "default": "few calls on any model: `gaussian-split` set by what the model predicts, its guidance and size",
    "gaussian-split": "few calls on any process, with an exact or good denoiser; with the grid `logistic`",
    "gaussian-split-pc": "the same, fully corrected to the end: nearest to the ODE; fails at few guided calls",
    "euler": "Euler on dz/dt; the common sampler of flow models",
    "heun": "two calls a step, no history: steps can be taken alone; DEIS rhoRK, and edm without churn",
    "midpoint": "as heun",
    "rk4": "four calls a step; long runs, reference solutions",
    "edm": "EDM's sampler without churn",
    "edm-sde": "EDM's sampler with its ImageNet churn; corrects errors, wants tens of steps",
    "multistep-1": "DDIM by the general formula",
    "multistep-2": "two predictions, exact quadrature, data form; second-order RES",
    "multistep-3": "three predictions, data form",
    "multistep-pc-2": "two predictions and a corrector at no further call",
    "multistep-pc-3": "three predictions and a corrector; reference solutions",
    "dbim-2": "DBIM of order 2 on bridges: two predictions, one in the last step",
    "dbim-3": "DBIM of order 3 as published; its start makes it of order 2",
    "deis-tab-1": "DEIS tAB1: noise form, interpolated in t; gDDIM with two predictions, on any process",
    "deis-tab-2": "DEIS tAB2; gDDIM with three predictions",
    "deis-tab-3": "DEIS tAB3; gDDIM with four predictions",
    "dpmpp-2m": "DPM-Solver++ (2M), as published",
    "dpmpp-3m": "DPM-Solver++ (3M), as in the authors' code (order 2)",
    "dpmpp-3m-corrected": "3M with the factor that the expansion asks for",
    "unipc-1": "UniPC-1",
    "unipc-2": "UniPC-2",
    "unipc-3": "UniPC-3",
    "unipc-bh1-1": "UniPC-1 with B(h) = h",
    "unipc-bh1-2": "UniPC-2 with B(h) = h; apart from its halves the same as bh2",
    "unipc-bh1-3": "UniPC-3 with B(h) = h",
    "unipc-v-1": "UniPC-1 with varying coefficients, which are exact integrals; on every process",
    "unipc-v-2": "UniPC-2 with varying coefficients",
    "unipc-v-3": "UniPC-3 with varying coefficients",
    "ddim-unic": "DDIM, corrected by the call of the next step",
    "dpmpp-2m-unic": "DPM-Solver++ (2M), corrected by the call of the next step",
    "pndm": "PNDM (F-PNDM): pseudo Runge-Kutta start, nine calls more",
    "s-pndm": "S-PNDM: two predictions, one call more",
    "plms": "PLMS: PNDM with a pseudo Heun start, one call more",
    "ipndm-1": "DDIM by PNDM's formula",
    "ipndm-2": "iPNDM: classical Adams weights, low order first",
    "ipndm-3": "iPNDM with three predictions",
    "ipndm-4": "iPNDM with four predictions",
    "ipndm-v": "iPNDM-v as published, with its slips; `lms-4` is the form without them",
    "gradient-estimation": "DDIM with the noise extrapolated by a whole step (gamma = 2)",
    "lms-1": "DDIM by the linear multistep formula, and by DEIS's in rho",
    "lms-2": "linear multistep in sigma/alpha (k-diffusion's LMS, DEIS rhoAB1), two predictions",
    "lms-3": "LMS with three predictions; DEIS rhoAB2",
    "lms-4": "LMS with four predictions; DEIS rhoAB3",
    "deis-tab-0": "DDIM by DEIS's formula; gDDIM with one prediction, on any process",
    "gddim-1-pc": "gDDIM with two predictions and a corrector at no further call",
    "gddim-2-pc": "gDDIM with three predictions and a corrector",
    "gddim-3-pc": "gDDIM with four predictions and a corrector",
    "l-deis-1": "gDDIM's ablation: the Cholesky root on CLD, two predictions; to compare, not to use",
    "l-deis-2": "the same with three predictions",
    "dpm-solver-1": "DDIM, by DPM-Solver's name",
    "dpm-solver-2": "DPM-Solver-2: noise form, no history; k-diffusion's dpm_2",
    "dpm-solver-3": "DPM-Solver-3: noise form, no history",
    "dpm-solver-fast": "DPM-Solver-3 that ends in a lower order, so that any number of calls is met exactly",
    "dpmpp-2s": "DPM-Solver++ (2S): data form, no history; guided sampling",
    "dpmpp-3s": "DPM-Solver++ (3S): data form, no history",
    "res-2s": "RES: 2S with the weights that meet every order condition",
    "heunpp2": "ComfyUI's Heun++; not a consistent average, kept for its look",
    "deis-rhork-kutta3": "DEIS rhoRK: Kutta's third-order method",
    "euler-maruyama": "the reverse SDE, frozen over a step; the baseline on CLD; hundreds of calls",
    "reverse-diffusion": "score_sde's predictor: the forward step undone; hundreds of calls",
    "annealed-langevin": "NCSN: Langevin steps at each noise level; hundreds of calls",
    "predictor-corrector-annealed": "Euler-Maruyama and a Langevin step of fixed size at each time",
    "sscs": "CLD's symmetric splitting",
    "ltsp": "guided sampling: the model by iPNDM-4, then the guidance by Euler, each with calls of its own",
    "stsp": "guided sampling: the model by Heun between half steps of guidance",
    "ddim-cfgpp": "CFG++: guided x0, unguided noise; small scales",
    "euler-ancestral-cfgpp": "CFG++ with ancestral noise",
    "dpmpp-2m-cfgpp": "CFG++ around dpmpp-2m",
    "taylor-2": "GENIE's step with the exact derivative, a Jacobian-vector product of the network",
    "quasi-taylor-2": "second-order Taylor step with ideal derivatives, close to ddim",
    "quasi-taylor-3": "third-order Taylor step with ideal derivatives, close to ddim",
    "quasi-taylor-2-sde": "the same of the ancestral step, close to ddpm",
    "quasi-taylor-3-sde": "the same of the ancestral step, close to ddpm",
    "gddim-sde": "stochastic gDDIM: one exact step of the reverse SDE; `eta` is the paper's lambda^2",
    "dpmpp-sde": "DPM-Solver++ SDE: two calls a step, noise on one path",
    "dpmpp-2m-sde": "DPM-Solver++ (2M) SDE; `eta` from the ODE (0) to the reverse SDE (1) and beyond",
    "dpmpp-2m-sde-heun": "the same with the exact weight of the slope",
    "dpmpp-3m-sde": "DPM-Solver++ (3M) SDE as published; `corrected` restores its factor",
    "dpm-2m-sde": "SDE-DPM-Solver in noise form, as in diffusers; wants small steps",
    "seeds-2": "SEEDS-2: exact weights and correlated noises, two calls a step",
    "seeds-3": "SEEDS-3: three calls a step",
    "er-sde": "ER-SDE-Solver-3; `phi` sets how much noise each level gets",
    "sa-solver": "stochastic Adams with a corrector at no further call; `tau` by level",
    "euler-ancestral": "Euler ancestral: down past the next level, and up by noise",
    "euler-ancestral-flow": "its rectified-flow variant",
    "dpm-2-ancestral": "the same with dpm_2's step down",
    "dpm-2-ancestral-flow": "its rectified-flow variant",
    "dpmpp-2s-ancestral": "the same with DPM-Solver++ (2S) down; the law of order 2",
    "dpmpp-2s-ancestral-flow": "its rectified-flow variant",
    "restart": "EDM's Heun that goes back up by noise; contracts the errors made above",
    "lcm": "for consistency models: predict data, noise again",
}

HEAD = """# The book of systems

Every system of the field's tutorials: what it is, the paper, where its formulas are here, the command that shows it,
what the paper claims and what was reached here, with the file in which that is recorded. Of {all} systems {here} are
here, {part} in part, {none} not yet. `fewstep systems` prints the same, `fewstep systems ID` all about one.

The rows are `src/fewstep/systems/*.toml`; this page is made from them by `python docs/tables.py`. A test holds that
every name is defined, every command parses and every figure stands in its record. Published figures were reached by
other networks on other data: they say what to expect of a method, not what to compare with."""
MARKS = {"here": "\u25cf", "in part": "\u25d0", "not yet": "\u25cb"}
HOSTS = {"arXiv:": "arxiv.org/abs/", "doi:": "doi.org/"}


def solvers() -> str:
    """One line a solver of the registry, with what it declares."""
    lines = []
    for name, when in WHEN.items():
        s = fs.TABLES[name]()
        called = ", ".join(f"`{each}`" for each in names(name))
        calls = _calls(s)
        order = str(s.order) if s.order else "0 (another law)"
        noise, start = ("yes" if flag else "no" for flag in (s.stochastic, "alpha=0" in s.ends))
        lines.append((called, order, str(calls), noise, _kinds(s.kinds), _kinds(s.point_mass), start, when))
    head = (
        "solver",
        "order",
        "calls a step",
        "noise",
        "processes",
        "exact on one point",
        "from alpha = 0",
        "what, when",
    )
    return _markdown(head, lines)


def defaults() -> str:
    """What is taken when nothing is said."""
    processes = {name: make() for name, make in fs.PROCESSES.items()}
    lines = [(n, p.kind, f"`{fs.DEFAULT_SOLVERS[p.kind]}`", f"`{p.default_grid}`") for n, p in processes.items()]
    return _markdown(("process", "kind", "solver", "grid"), lines)


def default_solver() -> str:
    """The best pairs of benchmarks/default_solver.py."""
    found = _latest("default_solver")
    if found is None:
        return "No result of `benchmarks/default_solver.py` lies in `benchmarks/results`."
    name, record = found
    problems = ", ".join(dict.fromkeys(row["problem"] for row in record["rows"]))
    calls = ", ".join(map(str, dict.fromkeys(row["calls"] for row in record["rows"])))
    lines = [(*(f"`{part}`" for part in pair.split(" / ")), f"{score:.3f}") for pair, score in record["ranking"][:8]]
    return f"{record['date']}, torch {record['torch']}, {problems} at {calls} calls (`{name}`):\n\n" + _markdown(
        ("solver", "grid", "mean log distance to the best"), lines
    )


def default_grid() -> str:
    """The scores of benchmarks/default_grid.py."""
    found = _latest("default_grid")
    if found is None:
        return "No result of `benchmarks/default_grid.py` lies in `benchmarks/results`."
    name, record = found
    calls = ", ".join(map(str, record["calls"]))
    grids = list(next(iter(next(iter(record["processes"].values()))["mean log rmse"].values())))
    lines = [
        (
            process,
            f"`{solver}`",
            *(f"{score:.2f}{'*' if grid == entry['default'] else ''}" for grid, score in scores.items()),
        )
        for process, entry in record["processes"].items()
        for solver, scores in entry["mean log rmse"].items()
    ]
    return (
        f"{record['date']}, torch {record['torch']}, {record['num']} samples, {calls} calls (`{name}`):\n\n"
        + _markdown(("process", "solver", *grids), lines)
    )


def closed_forms() -> str:
    """The mixtures of benchmarks/closed_forms.py on which constants were chosen, plain and guided."""
    found = _latest("closed_forms")
    if found is None:
        return "No result of `benchmarks/closed_forms.py` lies in `benchmarks/results`."
    name, record = found
    errors: dict[str, list[str]] = {}
    for key, row in record["tables"]["others"].items():
        errors.setdefault(key.partition(": ")[2], []).extend(f"{rms:.2g}" for rms, _ in row)
    calls = [f"{kind}{n}" for kind in ("", "guided, ") for n in record["calls"]]
    lines = [(*(f"`{part}`" for part in pair.split(" / ")), *row) for pair, row in errors.items()]
    head = f"{record['date']}, torch {record['torch']}, {record['num']} starts a mixture (`{name}`):\n\n"
    return head + _markdown(("solver", "grid", *calls), lines)


START = ("ddim", "dpmpp-2m", "unipc-3", "heun", "euler-ancestral", "dpmpp-2m-sde", "ddpm", "restart")
FAMILIES = {  # a section of docs/solvers.md and how `fewstep list` calls it
    "A linear part taken from the data": "Start here",
    "One prediction, held for a step": "Multistep",
    "Several predictions: multistep": "Multistep",
    "Several calls in a step: Runge-Kutta": "Runge-Kutta",
    "Derivatives instead of differences: Taylor": "Taylor",
    "Ancestral sampling": "Ancestral",
    "The reverse SDE": "Reverse SDE",
    "Noise put back": "Reverse SDE",
    "Guided sampling in two parts": "Guidance",
    "Drivers": "Drivers",
}


def listed() -> str:
    """What `fewstep list` prints, as JSON that docs/list.schema.json describes."""
    found = []
    sections = re.findall(r"^## (.*)$|^\| (`.*?) \|", MAP.read_text(encoding="utf-8"), re.MULTILINE)
    family, of = "", {}
    for title, row in sections:
        family = FAMILIES.get(title, family)
        of |= dict.fromkeys(re.findall(r"`([^`]+)`", row), family)
    for name in fs.SOLVERS:
        if name not in ALIASES:
            start = "default" if name in fs.DEFAULT_SOLVERS.values() else "here" if name in START else None
            found.append({"kind": "solvers", "name": name, "family": of[name], "start": start, **_promised(name)})
    order = list(dict.fromkeys(FAMILIES.values()))
    found.sort(key=lambda e: order.index(e["family"]))
    for name, make in ALL_PROCESSES.items():
        process = make()
        family = "Bridges" if isinstance(process, Bridge) else "Processes"
        start = "default" if name == "vp" else None
        facts = {"what": f"{_first_line(make)}", "processes": [process.kind]}
        found.append({"kind": "processes", "name": name, "family": family, "start": start, **facts})
    for kind, title, registry, most in (
        ("grids", "Grids", fs.GRIDS, "default"),
        ("methods", "Training", METHODS, "denoise"),
    ):
        for name, make in registry.items():
            start = "default" if name == most else None
            found.append({"kind": kind, "name": name, "family": title, "start": start, "what": _first_line(make)})
    rest = {"also": [], "order": None, "calls": None, "noise": None, "processes": None}
    entries = [json.dumps(rest | entry, ensure_ascii=False, sort_keys=True) for entry in found]
    return "[\n" + ",\n".join(entries) + "\n]\n"


def _promised(name: str) -> dict:
    """What a solver declares."""
    facts = {"also": [other for other in names(name) if other != name]}
    if name not in fs.TABLES:
        return {**facts, "what": _first_line(fs.SOLVERS[name])}
    s = fs.TABLES[name]()
    facts |= {"order": s.order, "calls": _calls(s), "noise": s.stochastic, "processes": list(s.kinds)}
    return {**facts, "what": WHEN[name]}


def _calls(solver: fs.Solver) -> int:
    """Network calls of a step more."""
    return solver.calls(11, to_zero=False) - solver.calls(10, to_zero=False)


def _first_line(entry: object) -> str:
    """The first docstring line of a registry entry; a `functools.partial` adds the options it sets."""
    text = (inspect.getdoc(getattr(entry, "func", entry)) or "").strip().partition("\n")[0]
    options = ", ".join(f"{key}={value}" for key, value in getattr(entry, "keywords", {}).items())
    return f"{text} [{options}]" if options else text


BLOCKS = {
    "defaults": defaults,
    "solvers": solvers,
    "closed-forms": closed_forms,
    "default-solver": default_solver,
    "default-grid": default_grid,
}


def fill(text: str) -> str:
    """The page with every block written anew."""
    for name, make in BLOCKS.items():
        pattern = re.compile(rf"(<!-- {name}:[^>]*-->\n).*?(<!-- end {name} -->)", re.DOTALL)
        if not pattern.search(text):
            raise ValueError(
                f"got a page without the block {name!r}: put <!-- {name}: --> and <!-- end {name} --> back"
            )
        block = make()
        text = pattern.sub(lambda found, block=block: f"{found[1]}\n{block}\n\n{found[2]}", text)
    return text


def book() -> str:
    """docs/systems.md."""
    counts = Counter(system.state for system in SYSTEMS.values())
    parts = [
        HEAD.format(all=len(SYSTEMS), here=counts["here"], part=counts["in part"], none=counts["not yet"]),
        drawn(),
    ]
    for chapter, title in CHAPTERS.items():
        rows = [_row(system) for system in SYSTEMS.values() if system.chapter == chapter]
        parts.append(f"## {title}\n\n{_markdown(('system', 'here', 'published', 'reached here'), rows)}")
    return "\n\n".join(parts) + "\n"


def drawn() -> str:
    """The map: every system by its chapter, marked by how far it came, that leads to its row."""
    lines = []
    for chapter, title in CHAPTERS.items():
        rows = [system for system in SYSTEMS.values() if system.chapter == chapter]
        links = [
            f'<a class="{s.state.replace(" ", "-")}" href="#system-{s.id}" title="{escape(s.what)}">'
            f"{MARKS[s.state]}&nbsp;{s.id}</a>"
            for s in rows
        ]
        lines.append(f"<p><b>{title}</b>\n" + "\n".join(links) + "</p>")
    legend = ", ".join(f"{mark} {state}" for state, mark in MARKS.items())
    return "\n".join(
        ["## The map", "", f"{legend}. A name leads to its row.", "", '<div class="map">', *lines, "</div>"]
    )


def _row(system: System) -> tuple[str, str, str, str]:
    places = [f"`{name}` in `{path}`" for path, name in map(place, system.code)]
    here = [*places, *([f"lacks {system.lacks}"] if system.lacks else []), *([f"`{system.show}`"] * bool(system.show))]
    source = f" (`{system.source}`)" if system.figure else ""
    first = f'<a id="system-{system.id}"></a>**{system.id}**: {system.what}. {_linked(system.paper)}'
    return first, "; ".join(here) or system.state, system.claim, system.reached + source


def _linked(paper: str) -> str:
    return re.sub(r"(arXiv:|doi:)([^\s;,]+)", lambda m: f"[{m[0]}](https://{HOSTS[m[1]]}{m[2]})", paper)


def main(argv: Sequence[str] | None = None) -> int:
    """Writes or checks the pages; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, say whether the pages are in sync")
    check = parser.parse_args(argv).check
    made = {
        PAGE: fill(PAGE.read_text(encoding="utf-8")),
        BOOK: book(),
        listing.KEPT: listed(),
    }
    stale = [path for path, text in made.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    if check:
        names = ", ".join(path.name for path in stale)
        print(f"{names} not in sync: run python docs/tables.py" if stale else "in sync")
        return int(bool(stale))
    for path in stale:
        path.write_text(made[path], encoding="utf-8")
    return 0


def _latest(study: str) -> tuple[str, dict] | None:
    files = sorted(RESULTS.glob(f"{study}_*.json"), key=lambda p: re.sub(r".*_", "", p.stem))
    return (files[-1].name, json.loads(files[-1].read_text(encoding="utf-8"))) if files else None


def _kinds(kinds: tuple[str, ...]) -> str:
    return "all" if set(kinds) == set(ALL_KINDS) else ", ".join(kinds) or "none"


def _markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


if __name__ == "__main__":
    sys.exit(main())
