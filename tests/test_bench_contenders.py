"""Contenders of the bench: peers against our own solvers, table files, ends of grids."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import fewstep as fs
from bench_toy import D, every_peer, mixture, peer, study, the, toy
from fewstep.bench.cell import Cell
from fewstep.bench.contender import STUDENTS, exact, ours, students
from fewstep.bench.peers import LIBRARIES, peers
from fewstep.bench.run import Entry, enter, make
from fewstep.noise import noise_source
from fewstep.tableau import MadeFor


@pytest.mark.parametrize(
    ("theirs", "mine"),
    [
        ("diffusers/dpm++2m@fewstep", "dpmpp-2m"),
        ("diffusers/dpm++3m@fewstep", "dpmpp-3m"),
        ("diffusers/unipc-3@fewstep", "unipc-3"),
        ("diffusers/lms@fewstep", "lms-4"),
        ("k-diffusion/euler@fewstep", "ddim"),
        ("k-diffusion/dpmpp_2m@fewstep", "dpmpp-2m"),
        ("torchdiffeq/euler@fewstep", "ddim"),
    ],
)
@pytest.mark.parametrize("process", [fs.VP(), fs.EDM()], ids=["vp", "edm"])
def test_a_peer_on_our_grid_is_our_solver(theirs, mine, process):
    """State, noise, levels and the network's time are right when the same method makes the same samples."""
    noise, denoiser = torch.randn(20, D), mixture(process)
    run = peer(theirs).prepare(process, 16)  # from 15 on the libraries agree on the order of the last steps
    own = the(f"{mine}@default+state", 16, toy(process))
    assert run.calls == own.calls == 16
    assert run.end == own.end == "state"
    assert torch.allclose(run.go(denoiser, noise, 0, 0), own.go(denoiser, noise, 0, 0), atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("name", ["diffusers/heun@karras", "k-diffusion/heun@karras", "torchdiffeq/rk4@karras"])
def test_a_peer_takes_no_more_calls_than_allowed_and_nears_the_exact_end(name, tmp_path):
    s = study(tmp_path)
    near = []
    for calls in (6, 40):
        counted = fs.Counted(mixture(fs.VP()))
        run = peer(name).prepare(fs.VP(), calls)
        run.go(counted, torch.randn(3, D), 0, 0)
        assert counted.calls == run.calls <= calls
        near.append(make(s, Entry(contender=peer(name), calls=calls, run=run), 50, [0]).rmse)
    assert near[1] < 0.35 * near[0]


@pytest.mark.parametrize(("name", "end"), [
    ("diffusers/unipc-3@exponential", "data"), ("k-diffusion/heun@karras", "data"),
    ("k-diffusion/dpm_fast@log-snr", "state"), ("torchdiffeq/rk4@karras", "state"),
])  # fmt: skip
def test_every_library_ends_where_it_says(name, end, tmp_path):
    """At many calls an end at sigma = 0 lies nearer to the exact one there than to the state at the last time."""
    s, run = study(tmp_path, subject=toy(std=0.02)), peer(name).prepare(fs.VP(), 60)
    assert run.end == end
    other = replace(run, end="state" if end == "data" else "data")
    right, wrong = (make(s, Entry(contender=peer(name), calls=60, run=r), 50, [0]).rmse for r in (run, other))
    assert right < wrong, (right, wrong)


@pytest.mark.parametrize("name", ["diffusers/ddim@leading", "k-diffusion/euler@karras", "torchdiffeq/euler@uniform"])
def test_peers_refuse_a_process_they_do_not_know(name):
    (entry,) = enter([peer(name)], fs.CLD(), [5])
    assert "no scalar process" in entry.failed


def test_a_peer_runs_on_flow_matching_from_a_finite_level(tmp_path):
    flow = toy(fs.Flow())
    name = "k-diffusion/dpmpp_2m@karras" if "k-diffusion/euler@karras" in every_peer() else "torchdiffeq/rk4@karras"
    (entry,) = enter([peer(name)], flow.process, [30])
    made = make(study(tmp_path, subject=flow, exact=exact(flow, 60)), entry, 50, [0])
    assert made.rmse < 0.1


def test_a_missing_library_is_said_and_an_unknown_peer_refused(monkeypatch):
    import fewstep.bench.peers as room

    monkeypatch.setitem(room.LIBRARIES, "diffusers", "not_there")
    found, missing = peers([])
    assert "diffusers" in missing
    assert not any(c.name.startswith("diffusers/") for c in found)
    with pytest.raises(ValueError, match="fits none"):
        peers(["torchdifeq/euler*"])


def test_a_table_file_runs_at_its_own_number_of_calls_only(tmp_path):
    fs.tabulate("unipc-3", fs.VP(), steps=5).save(tmp_path / "made.table")
    (contender,) = ours([str(tmp_path / "made.table")], toy())
    assert (contender.name, contender.group) == ("made", "fitted")
    (entry,) = enter([contender], fs.VP(), [4, 5, 6])
    noise = torch.randn(3, D)
    assert torch.equal(entry.run.go(mixture(fs.VP()), noise, 0, 0), the("unipc-3", 5).go(mixture(fs.VP()), noise, 0, 0))
    with pytest.raises(ValueError, match="written for"):
        ours([str(tmp_path / "made.table")], toy(fs.EDM()))


def test_table_files_of_one_name_are_all_there(tmp_path):
    paths = [
        tmp_path / folder / name for folder, name in (("a", "made.table"), ("b", "made.table"), ("a", "ddim.table"))
    ]
    for path, steps in zip(paths, (5, 6, 7), strict=True):
        path.parent.mkdir(exist_ok=True)
        fs.tabulate("ddim", fs.VP(), steps=steps).save(path)
    found = ours([*map(str, paths), "ddim", str(paths[0])], toy())
    assert [c.name for c in found] == ["made", str(paths[1]), str(paths[2]), "ddim"]
    assert [c.counts for c in found] == [(5,), (6,), (7,), None]


def test_a_grid_may_end_at_zero(tmp_path):
    s = study(tmp_path, subject=toy(std=0.02))
    entries = enter(ours(["multistep-pc-3@log-snr+zero", "multistep-pc-3@log-snr+then-zero"], s.subject), fs.VP(), [60])
    assert [entry.run.end for entry in entries] == ["data", "data"]
    assert [entry.run.calls for entry in entries] == [60, 60]
    for entry in entries:
        assert make(s, entry, 50, [0]).rmse < 1e-3
    with pytest.raises(ValueError, match="end of a grid 'nil'"):
        ours(["ddim@log-snr+nil"], toy())


def test_names_may_hold_stars_and_every_library_is_named():
    assert [c.name for c in ours(["unipc-?@k*"], toy())] == [
        f"unipc-{k}@{grid}" for k in (1, 2, 3) for grid in ("karras", "kl-optimal")
    ]
    assert {c.name.partition("/")[0] for c in every_peer().values()} <= set(LIBRARIES)


def test_students_run_beside_the_model_by_their_own_tables(tmp_path) -> None:
    tables = {str(n): fs.tabulate("ddim", fs.VP(), steps=n) for n in (2, 4)}
    theirs = replace(toy(std=0.2), digest="student", made_for=MadeFor(tables=tables))
    (student,) = students([str(tmp_path / "mine" / "model")], toy(), lambda _: theirs)
    assert (student.name, student.group, student.counts) == ("mine", STUDENTS, (2, 4))
    run = student.prepare(fs.VP(), 4)
    assert run.calls == 4
    assert run.subject is theirs
    made = study(tmp_path).make(Cell(run=run, seed=0), 20)["shown"]
    noise = noise_source(None, 0, 0).initial((20, 4), torch.float32, "cpu")
    assert torch.equal(made, run.go(theirs.denoiser(None), noise, 0, 0))
    for wrong in (replace(theirs, made_for=None), replace(theirs, shape=(5,))):
        with pytest.raises(ValueError, match="give a student of this model"):
            students(["mine"], toy(), lambda _, wrong=wrong: wrong)
