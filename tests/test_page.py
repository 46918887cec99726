"""The page without its components: what a choice runs, that its Python repeats it, what is refused, what is drawn."""

from __future__ import annotations

import json
import math
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fewstep as fs
from fewstep.cli import main
from fewstep.denoiser import Counted
from fewstep.page import figures, html
from fewstep.page.choice import DEFAULT, NONE, Choice, Job, offered
from fewstep.page.plane import MIXTURES, SCALAR, Plane
from fewstep.page.watch import Finished, Frame, frames, side_by_side


class Net(nn.Module):
    """A network of the shape diffusers' have: noise from the state, the time and the class."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.linspace(-0.8, 0.8, 4)[:, None, None, None].expand(4, 1, 4, 4).clone())

    def forward(self, x: Tensor, t: Tensor, class_labels: Tensor | None = None) -> SimpleNamespace:
        mean = self.mean[0] if class_labels is None else self.mean[class_labels]
        return SimpleNamespace(sample=0.9 * x - 0.3 * mean * torch.tanh(x + t[:, None, None, None] / 1000))


@pytest.fixture
def model(monkeypatch) -> fs.Model:
    made = fs.Model(net=Net().requires_grad_(False), process=fs.VP(), predicts="noise", time="index", shape=(1, 4, 4),
                    labels=("hat", "coat", "shoe"))  # fmt: skip
    monkeypatch.setattr(fs, "load", lambda *_: made)
    return made


def watched(choice: Choice, model: fs.Model) -> tuple[list[Frame], Finished]:
    *under_way, end = frames(Job.of(choice, model))
    assert isinstance(end, Finished)
    assert all(isinstance(frame, Frame) for frame in under_way)
    return under_way, end


# ---- a run


CHOICES = {
    "default": Choice(),
    "options": Choice(solver="ddim", options="eta=0.5", grid="karras", steps=7, seed=3),
    "word": Choice(solver="er-sde", steps=4, num=2),
    "guided": Choice(label="coat", scale=2.5, num=5),
    "unlabelled": Choice(label=NONE, solver="euler"),
    "classes": Choice(label="shoe, hat", num=5, solver="unipc-3"),
    "adaptive": Choice(solver="rk45", steps=500, num=3),
    "ends before": Choice(solver="heun", steps=6),
}


@pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES)
def test_the_python_repeats_the_run_to_the_bit(model, choice):
    _, end = watched(choice, model)
    run = Job.of(choice, model)
    assert run.python.count("\n") == 5
    names: dict[str, Tensor] = {}
    exec(run.python, names)
    assert torch.equal(names["x"], end.samples)
    assert end.samples.shape == (choice.num, 1, 4, 4)


def test_a_frame_is_what_the_network_makes_of_the_state_at_that_call(model):
    choice = Choice(solver="ddim", steps=5)
    under_way, end = watched(choice, model)
    run, seen = Job.of(choice, model), []
    fs.sample(
        run.denoiser, model.process, solver=run.solver, shape=(16, 1, 4, 4), callback=lambda *row: seen.append(row[3])
    )
    assert [frame.share for frame in under_way] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    for frame, x0 in zip(under_way, seen, strict=True):
        torch.testing.assert_close(frame.samples, x0)
    assert not torch.equal(under_way[0].samples, under_way[1].samples)
    assert str(under_way[2]) == "ddim: call 3 of 5"
    assert str(end).startswith("ddim: 5 network calls each, ")


@pytest.mark.parametrize("solver", ["ddim-cfgpp", "stsp"])
def test_of_a_solver_that_takes_guidance_apart_the_model_is_seen(model, solver):
    under_way, _ = watched(Choice(solver=solver, scale=2.0, steps=8), model)
    assert all((frame.samples.flatten(1).abs().sum(1) > 0).all() for frame in under_way[1:])


def test_a_watched_call_evaluates_what_an_unwatched_one_does(model, monkeypatch):
    seen, forward = [], Net.forward
    monkeypatch.setattr(Net, "forward", lambda self, *x, **y: seen.append(len(x[0])) or forward(self, *x, **y))
    watched(Choice(solver="ddim-cfgpp", scale=2.0, steps=3, label="shoe"), model)
    watching, seen[:] = list(seen), []
    run = Job.of(Choice(solver="ddim-cfgpp", scale=2.0, steps=3, label="shoe"), model)
    run.solve(run.denoiser, lambda _: None)
    assert sum(watching) == sum(seen) == 3 * 2 * 16


def test_a_driver_shows_every_sample(model):
    under_way, end = watched(Choice(solver="rk45", steps=500, num=3), model)
    assert (under_way[-1].samples.flatten(1).abs().sum(1) > 0).all()
    assert under_way[-1].share == 1
    assert "% of the way" in str(under_way[0])
    assert "on average" in str(end)


def test_a_run_that_nobody_watches_ends_at_its_next_call(model):
    run = Job.of(Choice(steps=50), model)
    counted = Counted(run.denoiser)
    watching = frames(Job(**{**vars(run), "denoiser": counted}))
    next(watching)
    next(watching)
    watching.close()
    assert counted.calls <= 3


def test_two_runs_go_in_turns_from_the_same_noise(model):
    runs = [Job.of(Choice(solver=name, steps=4), model) for name in ("ddim", "ddim", "dpmpp-2m")]
    seen = list(side_by_side(runs))
    assert [frame.share for frame in seen[1] if isinstance(frame, Frame)] == [0.5, 0.5, 0.5]
    same, again, other = seen[-1]
    assert torch.equal(same.samples, again.samples)
    assert not torch.equal(same.samples, other.samples)


@pytest.mark.parametrize(
    ("choice", "sentence"),
    [
        ({"scale": 2.0, "label": NONE}, "got guidance 2 without classes, where it has no effect: set it to 1"),
        ({"solver": "rk45", "grid": "karras"}, "got the grid karras for rk45, which takes its own times"),
        ({"solver": "heun", "options": "eta=1"}, "got option of heun 'eta', which is not known"),
        ({"options": "eta"}, "got the options 'eta': write NAME=VALUE, as in eta=0.5"),
        ({"options": "__import__('os').getcwd()"}, "got the options .*: write NAME=VALUE"),
        ({"solver": "dimm"}, "got solver 'dimm', which is not known: did you mean ddim"),
        ({"label": "boat"}, "got label 'boat', which is not known"),
        ({"solver": "dpm-solver-3", "steps": 1, "grid": "nowhere"}, "got grid 'nowhere', which is not known"),
        ({"steps": 0}, "got steps=0: give a number from 1 to 1000"),
        ({"steps": 10**9}, "got steps=1000000000: give a number from 1 to 1000"),
        ({"steps": 2.5}, "got steps=2.5: give a whole number"),
        ({"num": None}, "got num=None: give a whole number"),
        ({"num": 257}, "got num=257: give a number from 1 to 256"),
        ({"seed": -1}, "got seed=-1: give a number from 0 to"),
        ({"seed": 2**63}, "got seed=9223372036854775808: give a number from 0 to"),
        ({"scale": math.inf}, "got scale=inf: give a number from -100 to 100"),
        ({"scale": math.nan}, "got scale=nan: give a number from -100 to 100"),
        ({"options": "eta=" + "0" * 400}, "got 404 letters as options: give at most 400"),
        ({"solver": "analytic-ddpm", "options": "statistics='/etc/passwd'"}, "got statistics for analytic-ddpm, which"),
        ({"solver": "dpm-solver-v3", "options": "statistics=x"}, "got statistics for dpm-solver-v3, which is a file"),
    ],
)
def test_a_choice_without_effect_or_sense_is_refused_in_a_sentence(model, choice, sentence):
    with pytest.raises(ValueError, match=sentence):
        Job.of(Choice(**choice), model)


def test_what_a_network_does_not_return_is_said_by_the_run(model):
    with pytest.raises(ValueError, match="reads output 'sn', which the denoiser does not return"):
        list(frames(Job.of(Choice(solver="sn-ddpm"), model)))


def test_pictures_alone_are_shown(model):
    latent = fs.Model(**{**vars(model), "shape": (4, 4, 4)})
    with pytest.raises(ValueError, match="the page shows pictures of 1 or 3 channels"):
        Job.of(Choice(), latent)


def test_the_files_hold_the_run(model, tmp_path):
    _, end = watched(Choice(label="shoe", scale=2.0, steps=4, num=3), model)
    assert [file.name for file in end.save(tmp_path / "new")] == ["samples.npz", "sheet.png", "run.json", "run.py"]
    stored = np.load(tmp_path / "new" / "samples.npz")
    np.testing.assert_array_equal(stored["samples"], end.samples.numpy())
    assert stored["labels"].tolist() == [2, 2, 2]
    record = json.loads((tmp_path / "new" / "run.json").read_text())
    said = {"guidance": 2.0, "seed": 0, "num": 3, "final": "zero", "network_calls": 4, "grid": "default"}
    assert {name: record[name] for name in said} == said
    assert record["times"][-1] == 0
    assert (tmp_path / "new" / "run.py").read_text() == end.run.python


# ---- the plane


@pytest.mark.parametrize("process", SCALAR)
def test_more_calls_come_nearer_to_the_exact_paths(process):
    few, many = (Plane(process=process, steps=n, num=50).walk() for n in (8, 64))
    assert few.calls == 8
    assert many.distance < 0.15 * few.distance
    assert str(few).startswith("8 network calls, 0.")


def test_the_plane_has_the_denoiser_of_the_mixture():
    shape, process, t = MIXTURES["spiral"](), fs.EDM(), 2.0
    a, b = process.alpha(t), process.sigma(t)
    z = torch.randn(7, 2, dtype=torch.float64)
    exact = fs.Mixture(process, shape.means, shape.std, shape.weights)(z, t)
    torch.testing.assert_close(shape.denoised(z / math.hypot(a, b), math.atan2(b, a)), exact)


@pytest.mark.parametrize("name", MIXTURES)
@pytest.mark.parametrize("phi", [0.3, 1.2])
def test_the_density_is_one_and_flows_along_the_field(name, phi):
    shape, line = MIXTURES[name](), torch.linspace(-6, 6, 181, dtype=torch.float64)
    y = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1)
    h, cell = 1e-4, float(line[1] - line[0]) ** 2
    before, after = shape.density(y, phi + h), shape.density(y, phi - h)
    assert float(before.sum()) * cell == pytest.approx(1, abs=1e-4)
    flux = shape.density(y, phi)[..., None] * shape.velocity(y, phi)
    spread = sum(torch.gradient(flux[..., k], spacing=(line,), dim=1 - k)[0] for k in (0, 1))
    change = (after - before) / (2 * h)  # along -phi: continuity says change = -div(flux)
    assert float((change + spread)[2:-2, 2:-2].abs().max()) < 0.03 * float(change.abs().max())


@pytest.mark.parametrize("solver", ["ltsp", "ddim-cfgpp"])
def test_a_walk_has_the_state_of_every_call(solver):
    walk = Plane(solver=solver, steps=6).walk()
    assert len(walk.points) == len(walk.angles) == walk.calls + 1
    assert walk.distance > 0.0


def test_a_solver_that_adds_noise_has_no_exact_path():
    walk = Plane(solver="ddpm").walk()
    assert walk.exact is None
    assert "no exact path" in str(walk)


@pytest.mark.parametrize(
    ("choice", "sentence"),
    [
        ({"process": "blurring"}, "got process 'blurring', which is not known"),
        ({"solver": "rk45"}, "got solver 'rk45', which is not known"),
        ({"process": "flow", "solver": "deis-tab-2"}, "got a grid that starts at t = 1, where alpha = 0"),
        ({"grid": "nowhere"}, "got grid 'nowhere', which is not known"),
        ({"seed": None}, "got seed=None: give a whole number"),
        ({"steps": 1001}, "got steps=1001: give a number from 1 to 1000"),
        ({"seed": -1}, "got seed=-1: give a number from 0 to"),
    ],
)
def test_the_plane_refuses_in_a_sentence(choice, sentence):
    with pytest.raises(ValueError, match=sentence):
        Plane(**choice).walk()


# ---- what is drawn


def tables(*names: str, steps: int = 4) -> list[tuple[str, fs.Tableau]]:
    return [(name, fs.tabulate(name, fs.VP(), steps=steps)) for name in names]


def test_the_placement_has_a_dot_for_every_call():
    figure = figures.placement(tables("gaussian-split", "ddim"))
    for axes in figure.axes:
        dots = [mark for mark in axes.lines if mark.get_marker() == "o" and mark.get_markersize() < 5]
        assert len(dots) == 8


@pytest.mark.parametrize("steps", [4, 30])
def test_the_picture_of_a_table_has_its_weights(steps):
    ((_, table),) = tables("ddpm", steps=steps)
    (axes,) = figures.weights(table).axes
    drawn = axes.images[0].get_array()
    assert drawn.count() == sum(len(row.form.terms) for row in table.rows)
    assert drawn.max() == pytest.approx(max(c for row in table.rows for _, c in row.form))
    assert bool(axes.texts) == (steps == 4)


@pytest.mark.parametrize("process", ["cld", "blurring"])
def test_tables_of_other_kinds_are_drawn(process):
    table = fs.tabulate("ddim", fs.PROCESSES[process](), steps=3)
    assert figures.weights(table).axes[0].images[0].get_array().count() == 6


@pytest.mark.parametrize(("steps", "panels"), [(1, 1), (2, 2), (8, 4)])
def test_the_plane_is_drawn_at_any_number_of_calls(steps, panels):
    walk = Plane(steps=steps).walk()
    assert sum(bool(axes.collections) for axes in figures.field(walk).axes) == panels
    assert figures.paths(walk).axes[0].lines


@pytest.mark.parametrize("registry", [fs.SOLVERS, fs.TABLES], ids=["samples", "plane"])
def test_a_drop_down_shows_each_solver_once(registry):
    shown = offered(registry)
    assert shown[0] == DEFAULT
    assert len({id(registry[name]) for name in shown}) == len(shown) == len({id(make) for make in registry.values()})


def test_pieces_of_the_page_say_what_they_are_and_run_nothing():
    evil = '"><script>alert(1)</script>'
    image = html.image(torch.zeros(2, 1, 4, 4), evil)
    pieces = [image, html.text(evil, evil), html.code(evil, evil), html.words(evil), html.refusal(evil)]
    assert not any("<script" in piece for piece in pieces)
    assert 'alt="&quot;&gt;&lt;script' in image
    assert 'role="alert"' in html.refusal("no")
    assert html.links([Path("a b/run.py")], "made").count('href="made/a%20b/run.py" download="run.py"') == 1


# ---- the command


def test_without_gradio_the_command_names_the_extra(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["ui", "--port", str(free_port())]) == 1
    assert "run pip install 'fewstep[ui]'" in capsys.readouterr().err


def test_a_port_in_use_is_refused(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["ui", "--port", str(port)]) == 1
    err = capsys.readouterr().err
    assert f"cannot serve on 127.0.0.1:{port} (Address already in use): choose another --host or --port" in err
    assert err.count("\n") == 1


def test_a_host_that_is_none_is_refused(capsys):
    assert main(["ui", "--host", "nowhere.invalid", "--port", str(free_port())]) == 1
    err = capsys.readouterr().err
    assert "cannot serve on nowhere.invalid" in err
    assert "Unknown error" not in err
    assert "another --host or --port" in err


@pytest.mark.parametrize("port", ["0", "70000", "x"])
def test_a_port_is_a_number(capsys, port):
    assert main(["ui", "--port", port]) == 2
    assert "only whole numbers from 1 to 65535" in capsys.readouterr().err


def test_only_the_layout_knows_gradio():
    sources = {file.name: file.read_text() for file in Path(html.__file__).parent.glob("*.py")}
    assert [name for name, text in sources.items() if '"gradio"' in text or "gr." in text] == ["layout.py"]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]
