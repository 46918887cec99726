"""Tables from files: what is mutated under a right checksum is refused with a sentence, or runs."""

from __future__ import annotations

import copy
import json
import math
import os

import pytest
import torch

import fewstep as fs
from fewstep.loop.plan import MAKERS
from fewstep.tableau import Form, Row, Tableau
from fewstep.tableau.file import _encode
from fewstep.tableau.row import HEADS, ONES
from fewstep.words import LIMITS

GRID = torch.tensor([0.9, 0.5, 0.1], dtype=torch.float64)
TABLES = {
    "vp": fs.tabulate("ddpm", fs.VP(), grid=GRID),
    "eps": fs.tabulate("deis-tab-1", fs.VP(), grid=GRID),
    "cld": fs.tabulate("ddim", fs.CLD(), grid=GRID),
    "rule": fs.tabulate("heun", fs.Blurring(size=(3, 3)), grid=GRID),
}


def read(name, tmp_path):
    """The JSON and the numbers of a table's file."""
    TABLES[name].save(tmp_path / "whole")
    raw = (tmp_path / "whole").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    return json.loads(json.loads(raw[8 : 8 + length])["__metadata__"]["fewstep"]), raw[8 + length :]


def at(*keys, to):
    """A change of one place in the JSON."""

    def change(meta):
        *path, last = keys
        for key in path:
            meta = meta[key]
        meta[last] = to(meta[last]) if callable(to) else to

    return change


DEEP = [1]
for _ in range(70):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("vp", at("rows", 1, "t", to=[0.5]), r"the time of row 1 is \[0.5\], where a finite number belongs"),
        ("vp", at("rows", 1, "t", to=True), "the time of row 1 is True, where a finite number belongs"),
        ("vp", at("rows", 1, "t", to=math.nan), "the time of row 1 is nan"),
        ("vp", at("rows", 1, "t", to=-3.0), r"got time -3 for VP, which is defined on \[0, inf\]"),
        ("vp", at("rows", 1, "at", to="x"), "the network's time of row 1 is 'x'"),
        ("vp", at("rows", 1, "given", to="picture"), "row 1 is given as 'picture' and made from other rows"),
        ("vp", at("rows", 1, to={"t": 0.5, "at": 0.5, "given": "picture", "form": []}), "row 1 is given as 'picture'"),
        ("vp", at("rows", 1, to={"t": 0.5, "at": 0.5, "given": ONES, "form": []}), "row 1 is ones and evaluated"),
        ("vp", at("rows", 1, to={"t": 0.5, "at": 0.5}), "row 1 is .* where an object of t, at, given, form belongs"),
        ("vp", at("rows", to={}), "rows is {}, where a list belongs"),
        ("vp", at("rows", 1, "form", 0, 0, to=["w", 0]), r"a term of row 1 is \['w', 0\], which is no symbol"),
        ("vp", at("rows", 1, "form", 0, 0, to=["z", False]), "which is no symbol"),
        ("vp", at("rows", 1, "form", 0, 0, to=["z", 0, 1]), "which is no symbol"),
        ("vp", at("rows", 1, "form", 0, 0, to=["z", 7]), "reads z7, which is not made yet"),
        ("vp", at("rows", 1, "form", 0, 0, to=["y", 0, "sn2"]), r"row 1 reads sn2\[0\], which no denoiser"),
        ("vp", at("rows", 1, "form", to=lambda form: [*form, form[0]]), "row 1 has a term twice"),
        ("vp", at("rows", 1, "form", 0, 1, to=[10**9, None]), "outside the .* numbers of the file"),
        ("vp", at("rows", 1, "form", 0, 1, to=[-1, None]), "outside the .* numbers of the file"),
        ("vp", at("rows", 1, "form", 0, 1, to=[0, [2, 2]]), "with a block of shape .* no coefficient of VP"),
        ("vp", at("rows", 1, "form", 0, 1, to=[0, [1, 1], 2]), None),  # one weight a pixel, for pictures of one
        ("vp", at("noises", 0, "t", to=0.05), r"noise 0 is of \[0.05, 0.5\], which is no interval of the path"),
        ("vp", at("noises", 0, "stream", to=["path"]), "the stream of noise 0 is .* where a word belongs"),
        ("vp", at("noises", 0, "index", to=-1), "the index of noise 0 is -1"),
        ("vp", at("noises", 0, "more", to=1), "noise 0 is .* where an object of t, s, stream, index belongs"),
        ("eps", at("heads", 0, 0, to=[0, "sn"]), "it derives 'sn' of row 0: only noise of an evaluated row"),
        ("eps", at("heads", 0, 0, to=[2, "noise"]), "it derives 'noise' of row 2"),
        ("eps", at("heads", 0, 0, to=[[0], "noise"]), "the key of head 0 is"),
        ("cld", at("rows", 1, "form", 0, 1, to=[0, [2, 1]]), "no coefficient of CLD"),
        ("vp", at("grid", to=[0, None]), "got a grid of shape"),
        ("vp", at("output", to="edm"), "it reads 'edm', and networks predict x0"),
        ("vp", at("card", to=[1]), r"its card is \[1\], where an object belongs"),
        ("vp", at("card", to={"guidance": "a"}), "the guidance of its card is 'a'"),
        ("vp", at("card", to={"weights": 3}), "the weights of its card is 3"),
        ("vp", at("card", to={"notes": DEEP}), "nested too deep"),
        ("vp", at("card", to={"notes": "any"}), None),
        ("vp", at("solver", "variance", to=3), "got variance=3: give a word"),
        ("vp", at("solver", "etas", to=1), "got option 'etas' for DDPM, which has none of that name"),
        ("vp", at("solver", "class", to="Solver"), "got a solver of class 'Solver', which is not known"),
        ("vp", at("solver", "class", to="annotations"), "got a solver of class 'annotations', which is not known"),
        ("vp", at("process", "beta_max", to=10**30), "got beta_max=1000000.*: give a number"),
        ("vp", at("process", "name", to=["vp"]), r"names the process \['vp'\]"),
        ("rule", at("process", "size", to=[2000, 3]), "got 2000 pixels on a side: at most 1024 are taken"),
        ("rule", at("process", "size", to=[200, 200]), "got 160000 frequencies times network calls of a rule"),
        ("rule", at("process", to={"name": "vp"}), "is no rule of a solver on a process of frequencies"),
    ],
)  # fmt: skip
def test_each_fault_under_a_right_checksum_has_its_sentence(name, change, sentence, tmp_path):
    meta, data = read(name, tmp_path)
    change(meta := copy.deepcopy(meta))
    path = tmp_path / "changed"
    path.write_bytes(_encode(json.dumps(meta), data))
    if sentence is None:
        assert "rows" in Tableau.load(path).explain()
        return
    with pytest.raises(ValueError, match="is not a whole fewstep table") as error:
        Tableau.load(path)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=sentence):
        raise error.value


def test_a_table_with_another_weight_is_still_a_table(tmp_path):
    meta, data = read("vp", tmp_path)
    numbers = bytearray(data)
    offset = meta["rows"][1]["form"][0][1][0]
    numbers[8 * offset : 8 * offset + 8] = torch.tensor([0.25], dtype=torch.float64).numpy().tobytes()
    path = tmp_path / "changed"
    path.write_bytes(_encode(json.dumps(meta), bytes(numbers)))
    table = Tableau.load(path)
    assert next(c for _, c in table.rows[1].form) == 0.25
    assert fs.sample(fs.Gaussian(fs.VP(), 0.0, 1.0), fs.VP(), solver=table, shape=(2, 3)).shape == (2, 3)


@pytest.mark.parametrize("weight", [math.nan, math.inf, 1e39])
def test_a_weight_that_no_state_can_hold_is_refused(weight):
    form = Form({("z", 0): weight})
    with pytest.raises(ValueError, match="not finite on z0"):
        Tableau(rows=(Row(0.9, 0.9, Form({}), "start"), Row(0.5, None, form)), noises=(), process=fs.VP(), grid=GRID)


def test_a_pipe_is_no_table(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="no regular file"):
        Tableau.load(tmp_path / "pipe")


def test_what_could_not_be_loaded_is_not_saved(tmp_path):
    rows = [
        Row(0.9, 0.9, Form({}), "start"),
        *(Row(0.5, None, Form({("z", k): 1.0})) for k in range(LIMITS["rows of a table"])),
    ]
    long = Tableau(rows=tuple(rows), noises=(), process=fs.VP(), grid=GRID)
    with pytest.raises(ValueError, match="got 4097 rows of a table: at most 4096 are taken"):
        long.save(tmp_path / "table")
    given = Tableau(rows=(rows[0], Row(0.9, None, Form({}), "picture")), noises=(), process=fs.VP(), grid=GRID)
    with pytest.raises(ValueError, match="row 1 is given as 'picture'"):
        given.save(tmp_path / "table")
    assert not list(tmp_path.iterdir())


def test_a_solver_without_end_is_refused_before_it_writes():
    with pytest.raises(ValueError, match="network calls of a table: at most 100000 are taken"):
        fs.tabulate(fs.AnnealedLangevin(inner=10**9), fs.VP(), grid=GRID)


def test_the_heads_of_files_are_those_that_denoisers_are_made_for():
    assert set(HEADS) == set(MAKERS)


def test_times_far_from_the_path_have_a_place_on_it():
    from fewstep.process.clock import place

    assert place(fs.VE(), 1e6) == pytest.approx(0.0, abs=1e-300)


def test_a_solver_that_the_rows_are_not_of_does_not_stop_a_run(tmp_path):
    fitted = fs.Fitted(start=fs.DDIM(), theta=((0.0,), (0.0, 0.0)), phi=(0.0, 0.0), delta=(0.0, 0.0))
    form = Form({("z", 0): 400.0})  # wide: the run warns, and asks the solver for more calls, which it has not
    rows = (Row(0.9, 0.9, Form({}), "start"), Row(0.1, None, form))
    Tableau(rows=rows, noises=(), process=fs.VP(), grid=GRID, solver=fitted).save(tmp_path / "table")
    with pytest.warns(UserWarning, match="times as wide as the data"):
        fs.sample(fs.Gaussian(fs.VP(), 0.0, 1.0), fs.VP(), solver=tmp_path / "table", shape=(2, 3))
