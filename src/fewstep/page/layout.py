"""The page as gradio's components; what they do is in the other files of this folder."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from fewstep.files import extra
from fewstep.grid import GRIDS
from fewstep.interop.load import load
from fewstep.model import Model
from fewstep.page import figures, html
from fewstep.page.choice import DEFAULT, EACH, NONE, SLOTS, Choice, Job, filled, offered, options_of, place_of
from fewstep.page.plane import MIXTURES, SCALAR, Plane
from fewstep.page.watch import Finished, Frame, side_by_side
from fewstep.solver import SOLVERS, TABLES
from fewstep.words import pick, sentence

__all__ = ["build"]

NOTHING = "nothing"  # beside the solver
MADE = "made"  # where the page serves what its runs wrote
KEPT = 32  # runs whose files can be downloaded, beside the first; the oldest go first
QUEUE = 16  # clicks that wait; further ones are refused
SESSIONS = 32  # visits whose answers are kept until they are fetched; gradio's own bound is 2000

Updates = Iterator[dict[Any, Any]]


def build(models: Mapping[str, str | Path | None], folder: str | Path) -> Any:
    """The page as an ASGI application; `fewstep.page.guard` stands in front of it.

    `models` are folders by their names on the page, None for the shipped one; files for download alone lie in `folder`.
    """
    gr = extra("gradio", "ui", "the local page")
    from fastapi import FastAPI
    from fastapi.staticfiles import StaticFiles

    with gr.Blocks(title="fewstep", analytics_enabled=False) as page:
        gr.HTML("<h1>fewstep</h1><p>A sampler is a table: choose one, watch it run, take it with you.</p>")
        with gr.Tab("Samples"):
            _samples(gr, page, models, Path(folder))
        with gr.Tab("Playground") as tab:
            _playground(gr, tab)
    page.queue(max_size=QUEUE, api_open=False, default_concurrency_limit=1)
    kept = page._queue.pending_messages_per_session
    kept.max_size = min(kept.max_size, SESSIONS)
    app = FastAPI(openapi_url=None)
    app.mount(f"/{MADE}", StaticFiles(directory=folder))
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    return gr.mount_gradio_app(app, page, path="/", footer_links=[], run_history=False, show_error=False,
                               css=html.STYLE, ssr_mode=False, theme=gr.themes.Base(**fonts))  # fmt: skip


def _samples(gr: Any, page: Any, models: Mapping[str, str | Path | None], folder: Path) -> None:
    """Samples of a model, by one solver or two; of the shipped model the first stand there when the page opens."""
    first, *_ = models
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            model = gr.Dropdown(list(models), value=first, label="Model")
            solver = gr.Dropdown(offered(SOLVERS), value=DEFAULT, label="Solver")
            options = _slots(gr)
            second = gr.Dropdown([NOTHING, *offered(SOLVERS)], value=NOTHING, label="Beside it, from the same noise")
            others = _slots(gr)
            grid = gr.Dropdown(list(GRIDS), value=DEFAULT, label="Grid")
            brought = _model(models, first).made_for
            calls = 10 if brought is None else max(brought.by_calls)
            steps = gr.Slider(1, 100, value=calls, step=1, label="Network calls, at most")
            label = gr.Dropdown(_labels(_model(models, first)), value=EACH, label="Class")
            scale = gr.Slider(0, 10, value=1, step=0.25, label="Guidance scale", info="1 is none")
            with gr.Row():
                seed = gr.Number(0, precision=0, label="Seed", min_width=100)
                num = gr.Number(16, precision=0, label="Samples", min_width=100)
            with gr.Row():
                go = gr.Button("Sample", variant="primary", min_width=100)
                stop = gr.Button("Stop", min_width=100)
        with gr.Column(scale=3, min_width=280):
            status = gr.HTML(html.words("Press Sample."))
            with gr.Row():
                sides = [_Side(gr, shown=k == 0) for k in range(2)]
            between = gr.HTML()
            placement = gr.HTML()
            with gr.Row():
                for side in sides:
                    side.below(gr)

    def run(name: str, solver: str, second: str, *rest: Any) -> Updates:
        fields = dict(zip(("grid", "steps", "label", "scale", "seed", "num"), rest, strict=False))
        slots = rest[len(fields) :]
        choice = Choice(solver=solver, options=filled(solver, slots[:SLOTS]), **fields)
        chosen = [choice]
        if second != NOTHING:
            chosen.append(replace(choice, solver=second, options=filled(second, slots[SLOTS:])))
        runs = [Job.of(one, _model(models, name)) for one in chosen]
        yield cleared() | {side.upper: gr.update(visible=k < len(runs)) for k, side in enumerate(sides)}
        latest: list[Frame | Finished] = []
        began = time.monotonic()
        for latest in side_by_side(runs):
            now = {status: html.words(f"Sampling, {_left(latest, time.monotonic() - began)} ...")}
            for side, one in zip(sides, latest, strict=False):
                now |= side.shows(one)
            yield now
        ended = [one for one in latest if isinstance(one, Finished)]
        tables = [(one.run.name, one.outcome.table(0)) for one in ended]
        now = {status: html.words("Done."), placement: html.plot(figures.placement(tables), figures.PLACEMENT)}
        for side, one in zip(sides, ended, strict=False):
            now |= side.ends(one, folder)
        if len(ended) > 1:
            now[between] = html.difference(ended[0].samples, ended[1].samples)
        yield now

    def cleared() -> dict[Any, Any]:
        emptied = {between: "", placement: ""}
        for side in sides:
            emptied |= side.empty()
        return emptied

    def chosen(name: str) -> Any:
        with suppress(Exception):  # said when it is run
            one = _model(models, name)
            calls = gr.skip() if one.made_for is None else max(one.made_for.by_calls)
            return gr.update(choices=_labels(one), value=EACH), calls
        return gr.skip(), gr.skip()

    def blamed(sentence: str, values: tuple[Any, ...]) -> Any:
        """The field that a sentence is about: of two solvers' options those of the one that has it."""
        named = {"model": model, "solver": solver, "grid": grid, "steps": steps, "label": label, "scale": scale,
                 "seed": seed, "num": num}  # fmt: skip
        slots = dict(zip(options_of(values[2]), others, strict=False))
        slots |= dict(zip(options_of(values[1]), options, strict=False))
        found = place_of(sentence, [*slots, *named])
        field = slots.get(found or "") or named.get(found or "")
        return second if field is solver and values[1] in SOLVERS else field

    choices = [model, solver, second, grid, steps, label, scale, seed, num, *options, *others]
    outputs = [status, between, placement, *sides[0].parts, *sides[1].parts]
    told = _said(run, status, cleared, blamed, choices)
    running = go.click(told, choices, [*outputs, *choices], show_progress="hidden")
    stopped = stop.click(None, cancels=running, show_progress="hidden")
    stopped.then(lambda: html.words("Stopped."), None, status, show_progress="hidden")
    model.change(chosen, model, [label, steps], show_progress="hidden")
    for which, slots in ((solver, options), (second, others)):
        which.change(_offers, which, slots, show_progress="hidden")
    if models[first] is None:
        for update in run(*(one.value for one in choices)):
            for part, new in update.items():
                _keep(part, new)


def _slots(gr: Any) -> list[Any]:
    """Fields for a solver's options, which `_offers` names and shows."""
    return [gr.Textbox("", label="Option", max_lines=1, visible="hidden") for _ in range(SLOTS)]


def _offers(name: str) -> list[Any]:
    """What makes the fields those of a solver: each option's name, its default where nothing is written."""
    import gradio as gr

    shown = [gr.update(label=f"{name}: {option}", placeholder=default, value="", visible=True)
             for option, default in options_of(name).items()]  # fmt: skip
    return shown + [gr.update(value="", visible="hidden")] * (SLOTS - len(shown))


def _keep(part: Any, new: Any) -> None:
    """What a component is given while the page is made, as an event would."""
    for name, value in new.items() if isinstance(new, dict) else [("value", new)]:
        if name != "__type__":
            setattr(part, name, value)


def _left(latest: list[Frame | Finished], spent: float) -> str:
    """How long runs in turns still take, by the slower one."""
    share = min(one.share if isinstance(one, Frame) else 1.0 for one in latest)
    seconds = spent * (1 - share) / share if share else 0.0
    return f"about {seconds:.0f} s left" if seconds >= 1 else "a moment left"


class _Side:
    """One solver's columns: its samples, and below what repeats them, its table."""

    def __init__(self, gr: Any, *, shown: bool) -> None:
        self.gr = gr
        with gr.Column(min_width=260, visible=shown) as self.upper:
            self.samples = gr.HTML()

    def below(self, gr: Any) -> None:
        """Puts the second column in place."""
        with gr.Column(min_width=260, visible=False) as self.lower:
            self.table = gr.HTML()

    @property
    def parts(self) -> list[Any]:
        """All that changes."""
        return [self.upper, self.samples, self.lower, self.table]

    def empty(self) -> dict[Any, Any]:
        """What clears it."""
        return {self.samples: "", self.lower: self.gr.update(visible=False), self.table: ""}

    def shows(self, view: Frame | Finished) -> dict[Any, Any]:
        """What shows a run under way."""
        return {self.samples: html.image(view.samples, str(view))}

    def ends(self, end: Finished, folder: Path) -> dict[Any, Any]:
        """What shows a run at its end."""
        name, table = end.run.name, end.outcome.table(0)
        files = html.links([file.relative_to(folder) for file in end.save(tempfile.mkdtemp(dir=folder))], MADE)
        for old in sorted(folder.iterdir(), key=lambda run: run.stat().st_mtime)[1:-KEPT]:
            shutil.rmtree(old, ignore_errors=True)
        below = [
            html.code(end.run.python, f"Python that repeats {name}"),
            html.plot(figures.weights(table), f"{name} {figures.WEIGHTS}"),
            html.text(table.explain(), f"{name} as a table, in numbers"),
        ]
        return {self.samples: html.image(end.samples, str(end)) + files, self.lower: self.gr.update(visible=True),
                self.table: "".join(below)}  # fmt: skip


def _playground(gr: Any, tab: Any) -> None:
    """Runs in the plane."""
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            mixture = gr.Dropdown(list(MIXTURES), value=Plane().mixture, label="Mixture")
            process = gr.Dropdown(list(SCALAR), value=Plane().process, label="Process")
            solver = gr.Dropdown(offered(TABLES), value=DEFAULT, label="Solver")
            grid = gr.Dropdown(list(GRIDS), value=DEFAULT, label="Grid")
            steps = gr.Slider(1, 100, value=Plane().steps, step=1, label="Network calls, at most")
            seed = gr.Number(0, precision=0, label="Seed")
            go = gr.Button("Draw", variant="primary")
        with gr.Column(scale=3, min_width=280):
            status = gr.HTML(html.words("Press Draw."))
            with gr.Row():
                with gr.Column(min_width=260):
                    paths = gr.HTML()
                with gr.Column(min_width=260):
                    field = gr.HTML()

    def draw(*values: Any) -> Updates:
        names = ("mixture", "process", "solver", "grid", "steps", "seed")
        walk = Plane(**dict(zip(names, values, strict=True))).walk()
        yield {status: html.words(str(walk)), paths: html.plot(figures.paths(walk), figures.PATHS),
               field: html.plot(figures.field(walk), figures.FIELD)}  # fmt: skip

    choices = [mixture, process, solver, grid, steps, seed]
    triggers = [go.click, tab.select, *(one.change for one in choices[:4]), steps.release]
    named: dict[str, Any] = dict(zip(("mixture", "process", "solver", "grid", "steps", "seed"), choices, strict=True))
    told = _said(draw, status, lambda: {paths: "", field: ""}, lambda said, _: named.get(place_of(said, named) or ""),
                 choices)  # fmt: skip
    gr.on(triggers, told, choices, [status, paths, field, *choices], show_progress="hidden",
          trigger_mode="always_last")  # fmt: skip


def _said(work: Any, status: Any, cleared: Callable[[], dict[Any, Any]], blamed: Callable[[str, Any], Any],
          fields: list[Any]) -> Any:  # fmt: skip
    """Work on the page, whose errors are sentences there and at the field that they are about; old pictures go."""
    import gradio as gr

    plain = [one.info for one in fields]
    marked: set[int] = set()  # the fields that were ever marked, by any visitor

    def told(*values: Any) -> Updates:
        yield {status: html.words("Working ...")} | {
            fields[k]: gr.update(info=plain[k], elem_classes=[]) for k in sorted(marked)
        }
        try:
            yield from work(*values)
        except Exception as error:
            said = sentence(error)
            place = blamed(said, values)
            mark = {}
            if place is not None:
                marked.add(fields.index(place))
                mark = {place: gr.update(info=said, elem_classes=["wrong"])}
            yield cleared() | {status: html.refusal(said)} | mark

    return told


def _labels(model: Model) -> list[str]:
    return [EACH, NONE, *model.labels] if model.labels else [EACH]


def _model(models: Mapping[str, str | Path | None], name: str) -> Model:
    """The model of a name on the page."""
    return _load(pick(models, name, "model"))


@cache
def _load(path: str | Path | None) -> Model:
    return load(path)
