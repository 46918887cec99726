"""Tables: validation, the two rewrites, files, the printout."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

import fewstep as fs
from fewstep.process.operator import Block, Diagonal
from fewstep.tableau import Form, NoiseInterval, Row, Tableau

VP = fs.VP()
GRID = torch.tensor([1.0, 0.6, 0.3, 0.1], dtype=torch.float64)
START = Row(1.0, 1.0, Form({}), "start")


def made(*rows: Row, noises: tuple = ()) -> Tableau:
    return Tableau(rows=rows, noises=noises, process=VP, grid=GRID)


def same(a: Tableau, b: Tableau, tolerance: float = 1e-12) -> bool:
    """Whether two tables hold the same numbers row by row."""
    if len(a.rows) != len(b.rows):
        return False
    for x, y in zip(a.rows, b.rows, strict=True):
        for symbol in {*x.form.terms, *y.form.terms}:
            left, right = (row.form.terms.get(symbol, 0.0) for row in (x, y))
            left, right = (c.values if isinstance(c, Block | Diagonal) else torch.as_tensor(c) for c in (left, right))
            if not torch.allclose(left.double(), right.double(), rtol=tolerance, atol=tolerance):
                return False
    return True


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ((Row(1.0, None, Form({})),), "first row is not the start"),
        ((START, Row(0.5, None, Form({}))), r"row 1 \(t = 0\.5\) is empty"),
        ((START, Row(0.5, None, Form({("z", 1): 1.0}))), "reads z1, which is not made yet"),
        ((START, Row(0.5, None, Form({("z", 2): 1.0})), Row(0.4, None, Form({("z", 0): 1.0}))), "reads z2"),
        ((START, Row(0.5, None, Form({("z", 0): math.nan}))), "not finite on z0"),
        ((START, Row(0.5, None, Form({("z", 0): math.inf}))), "not finite on z0"),
        ((START, Row(0.5, None, Form({("z", 0): 1.0})), Row(0.4, None, Form({("y", 1, "x0"): 1.0}))), "not evaluated"),
        ((START, Row(0.5, None, Form({("xi", 0): 1.0}))), "reads noise 0, of which the table has 0"),
        ((START, Row(0.5, None, Form({("z", 0): 1.0}), "condition")), "choose one"),
    ],
)
def test_a_broken_table_is_refused(rows, sentence):
    with pytest.raises(ValueError, match=sentence):
        made(*rows)


def test_columns_and_calls():
    form = Form({("z", 0): 0.5, ("y", 0, "x0"): 0.2, ("xi", 0): 0.1, ("root", 0, "variance", 0): 0.3})
    table = made(START, Row(0.5, None, form), noises=(NoiseInterval(1.0, 0.5),))
    assert table.column("A") == {(1, 0): 0.5}
    assert table.column("B") == {(1, 0, "x0"): 0.2}
    assert table.column("C") == {(1, 0): 0.1}
    assert table.column("V") == {(1, 0, "variance", 0): 0.3}
    assert table.nfe == 1


def test_eliminated_tables_are_equal_exactly_when_the_samplers_are():
    ddim = fs.tabulate(fs.DDIM(), VP, grid=GRID).eliminate()
    euler = fs.RungeKutta(method="euler", form="noise", clock="rho")
    for solver in (euler, fs.Multistep(points=1), fs.Multistep(points=1, form="noise"), fs.DPMMultistep(points=1)):
        assert same(ddim, fs.tabulate(solver, VP, grid=GRID).eliminate()), solver
    assert not same(ddim, fs.tabulate("dpmpp-2m", VP, grid=GRID).eliminate())
    assert set(ddim.column("A")) == {(k, 0) for k in range(1, 4)}


@pytest.mark.parametrize("prediction", ["noise", "data", "v", "flow", "score"])
@pytest.mark.parametrize("solver", ["unipc-3", "deis-tab-2", "ddpm", "heun"])
def test_in_terms_of_a_prediction(prediction, solver):
    grid = torch.linspace(0.9, 0.05, 6, dtype=torch.float64)
    mixture = fs.Mixture(VP, torch.tensor([[1.0], [-0.5]]), 0.3)

    def network(x, t):  # what a perfect network of that prediction returns
        t = float(t[0])
        a, s = VP.alpha(t), VP.sigma(t)
        x0 = mixture(x, t)
        eps = (x - a * x0) / s
        return {"noise": eps, "data": x0, "v": a * eps - s * x0, "flow": eps - x0, "score": -eps / s}[prediction]

    denoiser = fs.wrap(network, VP, prediction)
    x = torch.randn(5, 1, dtype=torch.float64)
    table = fs.tabulate(solver, VP, grid=grid)
    raw = table.in_terms_of(prediction)
    assert raw.output == prediction
    a, b = (fs.sample(denoiser, VP, solver=t, x=x, seed=2) for t in (table, raw))
    assert torch.allclose(a, b, atol=1e-11)
    with pytest.raises(ValueError, match="already reads"):
        raw.in_terms_of(prediction)
    with pytest.raises(ValueError, match="in terms of"):
        fs.sample(mixture, VP, solver=raw, x=x)


@pytest.mark.parametrize(("process", "solver"), [
    ("vp", "unipc-3"), *((p, s) for p in ("vp", "cld", "blurring") for s in ("ddpm", "deis-tab-2")),
])  # fmt: skip
def test_files(process, solver, tmp_path):
    process = fs.PROCESSES[process](**({"size": (4, 4)} if process == "blurring" else {}))
    table = fs.tabulate(solver, process, steps=10)
    path = tmp_path / "table.safetensors"
    table.save(path)
    again = Tableau.load(path)
    assert same(table, again, 0.0)
    assert again.process == process
    assert again.noises == table.noises
    assert torch.equal(again.grid, table.grid)
    assert path.stat().st_size < 20_000
    assert sorted(p.name for p in tmp_path.iterdir()) == ["table.safetensors"]


def test_the_file_is_a_safetensors_file(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    table = fs.tabulate("ddim", VP, steps=3)
    table.save(tmp_path / "table.safetensors")
    weights = safetensors.load_file(tmp_path / "table.safetensors")["weights"]
    assert weights.dtype == torch.float64
    assert set(table.grid.tolist()) <= set(weights.tolist())


def test_damaged_and_foreign_files_are_refused(tmp_path):
    path = tmp_path / "table.safetensors"
    fs.tabulate("ddim", VP, steps=3).save(path)
    whole = path.read_bytes()
    damaged = {
        "empty": b"",
        "short": whole[:-9],
        "header only": whole[:60],
        "flipped": whole[:-1] + bytes([whole[-1] ^ 1]),
        "foreign": b"PK\x03\x04" + bytes(100),
        "another process": whole.replace(b"20.0", b"30.0"),
    }
    damaged |= {f"byte {k}": whole[:k] + bytes([whole[k] ^ 1]) + whole[k + 1 :] for k in range(0, len(whole), 61)}
    for data in damaged.values():
        path.write_bytes(data)
        with pytest.raises(ValueError, match="not a whole fewstep table"):
            Tableau.load(path)
    with pytest.raises(OSError, match="nowhere"):
        Tableau.load(tmp_path / "nowhere")


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "table.safetensors"
    fs.tabulate("ddim", VP, steps=3).save(path)
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space"):
        fs.tabulate("ddim", VP, steps=5).save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_explain_names_rows_times_weights_and_calls():
    text = fs.tabulate("unipc-2", VP, steps=3).explain()
    assert "UniPC(points=2" in text
    assert "3 network calls" in text
    assert len(text.splitlines()) == 2 + 1 + 5
    assert "x0[0]" in text
    assert "churn" in fs.tabulate("edm-sde", VP, steps=8).explain()
    assert "per frequency" in fs.tabulate("ddim", fs.Blurring(size=(4, 4)), steps=2).explain()


def test_tables_do_not_change():
    table = fs.tabulate("ddim", VP, steps=3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        table.rows = ()


@pytest.mark.parametrize("name", ["cld", "blurring"])
@pytest.mark.parametrize("prediction", ["noise", "score", "data"])
def test_in_terms_of_an_arbitrary_network_on_matrix_processes(name, prediction):
    """The rewritten table reads what the wrapped network would have been read as, however wrong the network is."""
    process = fs.PROCESSES[name](**({"size": (4, 4)} if name == "blurring" else {}))
    shape = (2, *process.state_shape((1, 4, 4)))
    network = (
        (lambda x, t: torch.tanh(x[:, 0])) if name == "cld" and prediction == "data" else lambda x, t: torch.tanh(x)
    )
    denoiser = fs.wrap(network, process, prediction)
    x = torch.randn(shape, dtype=torch.float64)
    for solver in ("deis-tab-2", "ddim", "multistep-2", "ddpm"):
        table = fs.tabulate(solver, process, steps=6)
        a, b = (fs.sample(denoiser, process, solver=t, x=x) for t in (table, table.in_terms_of(prediction)))
        assert torch.allclose(a, b, rtol=1e-7, atol=1e-7 * float(a.abs().max())), solver


def test_infinite_options_survive_json(tmp_path):
    table = fs.tabulate(fs.EDMHeun(churn=2.0), VP, steps=4)
    table.save(tmp_path / "t")
    assert Tableau.load(tmp_path / "t").solver == table.solver
    assert table.solver.config()["churn_max"] == "inf"


def test_tables_of_a_solver_of_ones_own_are_read_once_it_is_registered(tmp_path, monkeypatch):
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Held(fs.Solver):
        share: float = 1.0

        @property
        def promise(self):
            return fs.Promise(1)

        def write(self, w):
            fs.DDIM().write(w)

    for process in (fs.VP(), fs.Blurring(size=(4, 4))):  # by rows, and by the rule
        path = tmp_path / f"{process.kind}.safetensors"
        table = fs.tabulate(Held(share=0.5), process, steps=3)
        table.save(path)
        with pytest.raises(ValueError, match=r"class 'Held', which is not known: put .* into fs.TABLES before"):
            Tableau.load(path)
        with monkeypatch.context() as patch:
            patch.setitem(fs.TABLES, "held", Held)
            assert Tableau.load(path).solver == Held(share=0.5)
            assert fs.FirstLast(solver="held").solver == Held()
