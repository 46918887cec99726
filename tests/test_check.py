"""The instrument's own doors: what it takes, prints, writes and exits with; a driver's verdicts; the matrix."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

import fewstep as fs
from fewstep.check import Report, Verdict, matrix
from fewstep.check.exact import small
from fewstep.cli import main
from fewstep.process import ALL_PROCESSES
from fewstep.solver import DDIM, DRIVERS, RK45, LangevinCorrected
from fewstep.solver.driver.base import Driver

CONTRIBUTING = Path(__file__).parent.parent / "CONTRIBUTING.md"
USER = '''
from dataclasses import dataclass
from fewstep.solver import DDIM, Promise

@dataclass(frozen=True, kw_only=True)
class Mine(DDIM):
    """A user's own."""

class Boast(DDIM):
    """DDIM that claims order 2."""

    @property
    def promise(self):
        return Promise(2)

instance = Mine()
number = 3
'''


@pytest.fixture
def user(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(USER)
    return path


def test_a_first_solver_is_short_and_keeps_its_promise(tmp_path):
    """That of the recipe for newcomers."""
    (code,) = re.findall(r"^```python\n(# first\.py\n.*?)^```$", CONTRIBUTING.read_text(), re.DOTALL | re.MULTILINE)
    assert len(code.splitlines()) <= 25
    (tmp_path / "first.py").write_text(code)
    promises, on = ["order", "point-mass", "calls"], ["vp", "cld", "blurring"]
    report = fs.check.solver(f"{tmp_path}/first.py:Held", on, only=promises)
    assert report.ok, f"\n{report}"
    assert report["order"].claimed == 1


def test_a_report_is_read_by_name():
    report = fs.check.solver("ddim", ["vp", "cld"], only=["order", "moments"])
    assert report.ok
    assert report.processes == ("vp", "cld")
    assert report["order"].process == "vp"
    assert report["order", "cld"].measured > 0.75
    assert report["order"].claimed == 1
    assert report["moments"].status == "skip"
    assert ("order", "ve") not in report
    with pytest.raises(KeyError):
        report["ordre"]


def test_the_sheet_says_everything():
    text = str(fs.check.solver("ddim", "vp", only=["order", "strong-order"]))
    assert text.startswith("ddim on vp")
    assert "ok  order" in text
    assert "it adds no noise" in text
    assert text.endswith("1 passed, 0 failed, 1 do not apply")


def test_json_has_every_verdict_and_words_for_infinity():
    v = Verdict(name="order", process="vp", status="fail", measured=float("inf"), sentence="s")
    data = json.loads(Report("x", (v,)).to_json())
    assert data == {
        "solver": "x",
        "ok": False,
        "verdicts": [
            {"name": "order", "process": "vp", "status": "fail", "measured": "inf", "claimed": None, "sentence": "s"}
        ],
    }


@pytest.mark.parametrize("subject", ["ddim", DDIM, DDIM(), lambda: DDIM(eta=0.0)])
def test_what_it_takes(subject):
    assert fs.check.solver(subject, fs.VP(), only=["repeat"]).ok


@pytest.mark.parametrize("name", ["Mine", "instance"])
def test_it_takes_a_file_and_an_object(user, name):
    report = fs.check.solver(f"{user}:{name}", "vp", only=["order", "calls"])
    assert report.ok
    assert report.solver.endswith(name)


@pytest.mark.parametrize("name", ["Mine", "mine"])
def test_it_takes_a_process_from_a_file(tmp_path, name, capsys):
    path = tmp_path / "process.py"
    path.write_text("import fewstep as fs\nclass Mine(fs.VP): ...\nmine, number = Mine(), 3\n")
    report = fs.check.solver("ddim", f"{path}:{name}", only=["order", "calls"])
    assert report.ok
    assert f"ddim on {name}" in report.sheet()
    assert main(["check", "ddim", "--process", f"{path}:{name}", "--only", "calls"]) == 0
    assert main(["check", "ddim", "--process", f"{path}:number", "--only", "calls"]) == 1
    assert "got a int as process" in capsys.readouterr().err


def test_it_takes_a_module_and_an_object():
    assert fs.check.solver("fewstep.solver.sde.ancestral:DDIM", "vp", only=["repeat"]).ok


@pytest.mark.parametrize(
    ("subject", "words"),
    [
        ("unipcc-3", "did you mean unipc-3"),
        ("nowhere.py:Mine", "there is no file"),
        ("no.such.module:Mine", "give a module"),
        ("fewstep.solver:Nobody", "has no Nobody"),
        (":Mine", "write path/to/file.py:object"),
        (3, "got a int to check"),
    ],
)
def test_what_it_refuses(subject, words):
    with pytest.raises(ValueError, match=words):
        fs.check.solver(subject, "vp")


def test_an_unknown_verdict_is_refused():
    with pytest.raises(ValueError, match="did you mean order"):
        fs.check.solver("ddim", "vp", only=["oder"])


def test_a_solver_that_raises_is_a_finding():
    class Raises(DDIM):
        def write(self, w):
            raise RuntimeError("boom")

    report = fs.check.solver(Raises(), "vp", only=["order"])
    assert not report.ok
    assert "boom" in report["order"].sentence


def test_thorough_runs_every_number_of_steps():
    verdict = fs.check.solver("ddim", "vp", only=["finite"], thorough=True)["finite"]
    assert verdict.status == "pass"
    assert "1 to 64" in verdict.sentence


# ---- the command


def test_the_command_prints_the_sheet_and_writes_json(tmp_path, capsys):
    path = tmp_path / "report.json"
    assert main(["check", "ddim", "--process", "vp", "--only", "order", "--only", "calls", "--json", str(path)]) == 0
    assert "ddim on vp" in capsys.readouterr().out
    assert json.loads(path.read_text())["ok"] is True


def test_the_command_fails_on_a_promise_that_is_not_kept(user, capsys):
    assert main(["check", f"{user}:Boast", "--process", "vp", "--only", "order"]) == 1
    out, err = capsys.readouterr()
    assert "FAIL  order" in out
    assert "1 promise" in err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "got no solver"),
        (["ddim", "--all"], "give one"),
        (["unipcc-3"], "did you mean unipc-3"),
        (["ddim", "--process", "pv"], "did you mean"),
        (["ddim", "heun", "--option", "eta=0.5"], "one solver"),
        (["ddim", "--only", "oder"], "did you mean order"),
        (["ddim", "--option", "eat=0.5"], "option of ddim 'eat'"),
        (["ddim", "--option", "eta=much"], "give a number"),
    ],
)
def test_the_command_says_what_is_wrong(argv, words, capsys):
    assert main(["check", *argv]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("source", ["class X(", "import no_such_module", "1 / 0"])
def test_a_file_that_does_not_run_is_named(source, tmp_path, capsys):
    path = tmp_path / "mine.py"
    path.write_text(source)
    assert main(["check", f"{path}:X"]) == 1
    assert f"{path} does not run (" in capsys.readouterr().err


def test_an_option_is_set(capsys):
    assert main(["check", "ddim", "--option", "eta=0.5", "--process", "vp", "--only", "order"]) == 0
    assert "weak-order" in capsys.readouterr().out


# ---- the matrix


def test_the_matrix_has_no_empty_cell():
    reports = [
        fs.check.solver(n, ["vp", "cld"], only=["order", "error-10"]) for n in ("ddim", "dpmpp-2m", "ddpm", "edm-sde")
    ]
    text = matrix.markdown(reports)
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert len(rows) == 4
    assert all(cell.strip() for row in rows for cell in row.strip("|").split("|"))
    assert "| [1] |" in rows[1]  # the reason that dpmpp-2m gives for CLD
    assert f"1. {fs.DPMMultistep.reason}" in text
    assert " w |" in rows[2]
    assert "None." in text


def test_the_matrix_shows_what_is_red():
    v = Verdict(name="order", process="vp", status="fail", measured=0.9, claimed=2.0, sentence="too slow")
    text = matrix.markdown([Report("bad", (v,))])
    assert "**order**" in text
    assert "- `bad` on vp, order: too slow" in text


def test_a_run_over_the_matrix_goes_on_where_it_stopped(tmp_path, monkeypatch):
    store, done = matrix.Store(tmp_path), []
    measured = matrix.solver
    monkeypatch.setattr(matrix, "solver", lambda *a, **k: (done.append(a), measured(*a, **k))[1])
    first = matrix.report("ddim", ["vp", "cld"], store, only=["order", "repeat"])
    again = matrix.report("ddim", ["vp", "cld"], store, only=["order", "repeat"])
    assert len(done) == 2
    assert again == first
    matrix.report("ddim", ["vp"], replace(store, fresh=True), only=["order"])
    assert len(done) == 3


# ---- drivers


DAILY = [("vp", name) for name in DRIVERS] + [("flow", name) for name in DRIVERS] + [("cld", "rk45")]


@pytest.mark.parametrize(
    ("process", "name"),
    [
        pytest.param(process, name, marks=() if (process, name) in DAILY else pytest.mark.slow)
        for process in ("vp", "flow", "cld", "blurring")
        for name in DRIVERS
    ],
)
def test_every_driver_keeps_its_promises(name, process):
    report = fs.check.solver(name, process)
    assert report.ok, f"\n{report}"
    assert all(v.sentence for v in report)


def test_a_driver_is_asked_for_no_end_beyond_its_times():
    """Alpha is 0 at t = 1 on cosine, whose runs end at t_max = 0.9946."""
    (ends,) = fs.check.solver("rk45", "cosine", only=["ends"])
    assert ends.status == "pass"
    assert ends.sentence.startswith("alpha=0 is beyond t_max, and refused")


@dataclass(frozen=True, kw_only=True)
class Selfish(RK45):
    """Takes its steps by the error of the whole batch."""

    norm: str = "batch"


class Miscounts(RK45):
    """Says one call less for each sample."""

    def drive(self, run):
        found = super().drive(run)
        return replace(found, calls=found.calls - 1)


class Careless(RK45):
    """Ends where it may not, and says that it reached the end."""

    def drive(self, run):
        found = super().drive(run)
        return replace(found, status=("reached the end",) * len(found.status))


class Undecided(RK45):
    """Another state each time."""

    def drive(self, run):
        found = super().drive(run)
        return replace(found, state=found.state + 1e-13 * torch.rand_like(found.state))


@pytest.mark.parametrize(
    ("driver", "red"),
    [(Selfish(), "batch"), (Miscounts(), "calls"), (Careless(), "outcome"), (Undecided(), "repeat")],
    ids=lambda x: type(x).__name__ if isinstance(x, Driver) else x,
)
def test_a_broken_driver_is_rejected_by_name(driver, red):
    report = fs.check.solver(driver, "vp", only=["calls", "outcome", "repeat", "batch", "replay"])
    assert [v.name for v in report.failures] == [red], f"\n{report}"


class Rounds(RK45):
    """Loses digits of float32 states."""

    def drive(self, run):
        found = super().drive(run)
        single = run.start.dtype == torch.float32
        return replace(found, state=found.state.bfloat16().float()) if single else found


class Deaf(RK45):
    """Follows no tolerance."""

    def drive(self, run):
        return RK45(rtol=1e-3, atol=1e-3).drive(run)


class Loud(LangevinCorrected):
    """Ends in a law that is too wide."""

    def drive(self, run):
        found = super().drive(run)
        return replace(found, state=1.2 * found.state)


@pytest.mark.parametrize(
    ("driver", "red"),
    [(Rounds(), "dtype"), (Deaf(), "tolerance"), (Loud(), "marginals")],
    ids=lambda x: type(x).__name__ if isinstance(x, Driver) else x,
)
def test_a_driver_that_misses_its_answer_is_rejected_by_name(driver, red):
    report = fs.check.solver(driver, "vp", only=["dtype", "tolerance", "marginals"])
    assert red in [v.name for v in report.failures], f"\n{report}"


def test_every_process_of_the_registry_can_be_checked():
    for name in ALL_PROCESSES:
        assert isinstance(small(name), type(ALL_PROCESSES[name]()))
