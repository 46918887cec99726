"""The command line: help without torch, one sentence for every mistake, results that are what they say."""

from __future__ import annotations

import ast
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

import fewstep
from fewstep.cli import COMMANDS, main
from fewstep.process import ALL_PROCESSES
from fewstep.solver import ALIASES, names
from fewstep.train.methods import METHODS

SOURCE = Path(fewstep.__file__).parent


def python(*argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs python in a fresh process that finds this source tree."""
    environment = {**os.environ, "PYTHONPATH": str(SOURCE.parent), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run([sys.executable, *argv], env=environment, capture_output=True, text=True, timeout=300)


def refused(capsys, *argv: str, code: int = 2) -> str:
    """Runs a command line that must fail with one sentence; returns the sentence."""
    assert main(argv) == code
    out, err = capsys.readouterr()
    assert err.startswith("fewstep: ")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    assert out == ""
    return err


# ---- imports


@pytest.mark.parametrize("argv", [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)], ids=" ".join)
def test_help_does_not_import_torch(argv):
    code = (
        "import sys\n"
        "from fewstep.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as stop: assert not stop.code, stop.code\n"
        "assert not {'torch', 'numpy', 'rich'} & set(sys.modules)\n"
    )
    done = python("-c", code, *argv)
    assert done.returncode == 0, done.stderr
    assert "fewstep" in done.stdout


def test_the_list_is_read_without_torch():
    code = "import sys\nfrom fewstep.cli import main\nmain(sys.argv[1:])\nassert 'torch' not in sys.modules\n"
    done = python("-c", code, "list")
    assert done.returncode == 0, done.stderr
    assert "dpmpp-2m" in done.stdout


def test_importing_every_public_name_needs_torch_and_numpy_alone():
    extras = ("diffusers", "safetensors", "scipy", "rich", "PIL")
    done = python("-c", f"from fewstep import *; import sys; assert not {set(extras)} & set(sys.modules)")
    assert done.returncode == 0, done.stderr


def test_the_table_of_public_names_is_the_list_of_imports():
    tree = ast.parse((SOURCE / "__init__.py").read_text())
    imports = {node.module: tuple(alias.name for alias in node.names)
               for block in ast.walk(tree) if isinstance(block, ast.If)
               for node in block.body if isinstance(node, ast.ImportFrom)}  # fmt: skip
    assert imports == {module: tuple(names.split()) for module, names in fewstep._HOME.items()}
    for name in fewstep.__all__:
        assert getattr(fewstep, name) is not None


def test_no_module_can_hide_a_public_name():
    modules = {path.stem for path in SOURCE.iterdir()}
    assert not modules & set(fewstep.__all__)


def test_an_unknown_public_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'smaple'"):
        fewstep.smaple  # noqa: B018


# ---- one sentence for every mistake


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["smaple"], "did you mean sample"),
        (["explain", "ddim", "--steps", "0"], "from 1 on"),
        (["explain", "ddim", "--steps", "-3"], "from 1 on"),
        (["explain", "ddim", "--steps", "2.5"], "from 1 on"),
        (["explain", "ddim", "--option", "eta"], "NAME=VALUE"),
        (["explain", "ddmi"], "ddim"),
        (["explain", "ddim", "--process", "vpp"], "did you mean vp"),
        (["explain", "ddim", "--grid", "karas"], "did you mean karras"),
        (["explain", "ddim", "--option", "etta=1"], "did you mean eta"),
        (["explain", "no/such/file"], "no file"),
        (["explain", "table.safetensors"], "no file"),
        (["list", "solver"], "solvers"),
        (["sample", "--steps", "0"], "from 1 on"),
        (["sample", "--num", "0"], "from 1 on"),
        (["sample", "--batch", "-1"], "from 1 on"),
        (["sample", "--steps", "3", "--nfe", "3"], "not allowed with"),
        (["sample", "--final", "stat"], "denoise"),
        (["sample", "--stpes", "4"], "did you mean --steps"),
        (["train", "flow", "a.npz", "out", "--imags", "4"], "did you mean --images"),
        (["fit", "--stpes=4"], "did you mean --steps"),
        (["list", "grids", "more"], "got more, which nothing takes"),
        (["list", "--filter", "no such"], "fewer words"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_command_line_is_one_sentence(capsys, argv, words):
    assert words in refused(capsys, *argv)


MODEL = str(SOURCE / "models" / "fashion-unet")
KINDS = {
    0: ["list", "explain ddim"],
    1: ["sample nofolder", "sample --memory 1 --num 1", "sample --out {file}/out --num 1 --steps 1",
        "sample --solver sscs --dry-run", "sample --solver {file}", "explain {file}", "explain --model nofolder",
        "check nofile.py:Solver", "train nodata {out}", "train progressive --teacher nofolder {out}",
        "restore nofolder picture.png --out {out}", "restore {model} picture.png --out {out}", "stats nofolder",
        "fit nofolder", "export nofolder --out {out}.onnx", "bench nofolder"],
    2: ["nope", "--nope", "sample --nope", "sample --solver nope", "sample --grid nope", "sample --solver nope.table",
        "sample --option eta=2 --solver ddim", "sample --label nope", "sample --device nope", "sample --steps 0",
        "sample --quality --num 2", "explain nope", "explain ddim --process nope", "explain ddim --option eta=x",
        "list nope", "list --filter zzz", "systems nope", "check", "check nope", "check ddim --only nope", "train",
        "train nodata {out} --process nope", "train nodata {out} --predicts nope", "train nope nodata {out}",
        "restore", "stats --device nope", "fit --solver nope", "export --solver rk45 --out {out}.onnx",
        "export --out {out}.txt", "bench --solver nope", "bench --solver ddim@nope", "bench --features nope",
        "bench --calls 0", "ui --port 70000", "demo --nope"],
}  # fmt: skip


@pytest.mark.parametrize("code", KINDS)
def test_one_kind_of_error_has_one_exit_code(tmp_path, capsys, code):
    (tmp_path / "file").write_bytes(b"no table")
    places = {"file": tmp_path / "file", "out": tmp_path / "out", "model": MODEL}
    for line in KINDS[code]:
        found = main(line.format(**places).split())
        err = capsys.readouterr().err
        assert (line, found) == (line, code), err
        assert not code or err.splitlines()[-1].startswith("fewstep: ")


def test_a_command_leaves_warnings_as_they_were(monkeypatch):
    form = warnings.formatwarning
    seen = []
    monkeypatch.setattr(COMMANDS["list"], "run", lambda _args: seen.append(warnings.formatwarning))
    assert main(["list"]) == 0
    assert warnings.formatwarning is form is not seen[0]


def test_debug_shows_the_traceback(monkeypatch):
    with pytest.raises(ValueError, match="did you mean"):
        main(["--debug", "explain", "ddmi"])
    with pytest.raises(ValueError, match="did you mean"):
        main(["explain", "ddmi", "--debug"])
    monkeypatch.setenv("FEWSTEP_DEBUG", "1")
    with pytest.raises(ValueError, match="did you mean"):
        main(["explain", "ddmi"])


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (KeyboardInterrupt(), 130, "stopped"),
        (KeyboardInterrupt("a callback's own word"), 130, "stopped"),
        (RuntimeError("two\nlines"), 1, "unexpected RuntimeError: two lines"),
        (ValueError(""), 1, "ValueError"),
    ],
)
def test_whatever_goes_wrong_is_one_sentence(capsys, monkeypatch, error, code, words):
    def fail(_args):
        raise error

    monkeypatch.setattr(COMMANDS["list"], "run", fail)
    assert words in refused(capsys, "list", code=code)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_signal_stops_every_command_with_one_sentence(capsys, monkeypatch, name, number, code):
    before = signal.getsignal(number)

    def work(_args):
        os.kill(os.getpid(), number)
        time.sleep(5)

    monkeypatch.setattr(COMMANDS[name], "run", work)
    words = {"train": ["data", "out"], "explain": ["ddim"], "restore": ["m", "f", "--out", "o"]}.get(name, [])
    assert main([name, *words]) == code
    assert capsys.readouterr().err == "fewstep: stopped.\n"
    assert signal.getsignal(number) is before


def test_a_missing_extra_is_named(capsys, monkeypatch):
    from fewstep.files import extra

    monkeypatch.setattr(COMMANDS["list"], "run", lambda _args: extra("no_such_module", "train", "training"))
    said = refused(capsys, "list", code=1)
    assert "pip install 'fewstep[train]'" in said
    assert "in a checkout: pip install -c constraints.txt '.[train]'" in said


def test_export_asks_for_its_own_extra_first(capsys, monkeypatch, tmp_path):
    from fewstep import files

    monkeypatch.setattr(files, "import_module", lambda name: (_ for _ in ()).throw(ModuleNotFoundError(name=name)))
    assert "'fewstep[export]'" in refused(capsys, "export", "--out", str(tmp_path / "a.onnx"), code=1)


def test_a_reader_that_goes_away_is_no_error():
    code = "import subprocess, sys; subprocess.run(f'{sys.executable} -m fewstep list | true', shell=True)"
    assert python("-c", code).stderr == ""


# ---- list and explain


def listed(capsys, *words):
    assert main(["list", *words]) == 0
    return capsys.readouterr().out


def test_list_names_everything_within_eighty_columns_and_twelve_families(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    out = listed(capsys)
    assert max(map(len, out.splitlines())) <= 80
    entries = json.loads(listed(capsys, "--json"))
    assert len({e["family"] for e in entries}) <= 12
    monkeypatch.setenv("COLUMNS", "400")
    out = listed(capsys)
    kinds = {"solvers": fewstep.SOLVERS, "processes": ALL_PROCESSES, "grids": fewstep.GRIDS, "methods": METHODS}
    for kind, name in ((kind, name) for kind, registry in kinds.items() for name in registry):
        first, *others = names(name) if kind == "solvers" else (name,)
        (entry,) = (e for e in entries if (e["kind"], e["name"]) == (kind, first))
        assert entry["also"] == others
        assert len(entry["what"]) > 3
        lines = [line for line in out.splitlines() if line[2:].split()[:1] == [first] and entry["what"] in line]
        assert any(set(others) <= set(line.replace(",", " ").split()) for line in lines)


def test_list_says_what_solvers_declare(capsys):
    entries = {e["name"]: e for e in json.loads(listed(capsys, "solvers", "--json"))}
    for name in (name for name in fewstep.TABLES if name not in ALIASES):
        solver, e = fewstep.TABLES[name](), entries[name]
        assert (e["order"], e["noise"], tuple(e["processes"])) == (solver.order, solver.stochastic, solver.kinds)
        assert e["calls"] == solver.calls(11, to_zero=False) - solver.calls(10, to_zero=False)
    assert [e["name"] for e in entries.values() if e["start"] == "default"] == ["default"]


def test_the_list_for_programs_is_as_its_schema_says(capsys):
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads((SOURCE.parent.parent / "docs" / "list.schema.json").read_text())
    for words in ([], ["grids"], ["--filter", "order-3 block"]):
        jsonschema.validate(json.loads(listed(capsys, *words, "--json")), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate([{"kind": "solvers"}], schema)


def test_a_filter_takes_all_its_words(capsys):
    found = [e["name"] for e in json.loads(listed(capsys, "--filter", "Order-3 block multistep", "--json"))]
    assert found == ["multistep-pc-2", "multistep-pc-3", "gddim-1-pc", "gddim-2-pc", "gddim-3-pc"]
    assert [e["name"] for e in json.loads(listed(capsys, "--filter", "gddim-2", "--json"))][0] == "deis-tab-2"


def test_fewstep_alone_prints_its_help(capsys):
    with pytest.raises(SystemExit) as stop:
        main([])
    assert not stop.value.code
    assert "COMMAND" in capsys.readouterr().out


@pytest.mark.parametrize("width", [60, 100])
def test_help_is_wrapped_at_the_width_of_the_terminal(capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    with pytest.raises(SystemExit):
        main(["export", "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert width - 20 < max(map(len, lines)) <= width


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_commands_options_and_names(capsys, shell):
    pytest.importorskip("shtab")
    with pytest.raises(SystemExit):
        main(["--completion", shell])
    script = capsys.readouterr().out
    for word in ("explain", "guidance", "dpmpp-2m", "deis-rhok-heun"[:8], "karras", "sub-vp"):
        assert word in script


def test_a_table_as_numbers(capsys):
    assert main(["explain", "ddim", "--process", "vp", "--steps", "2", "--option", "eta=1", "--json"]) == 0
    found, table = json.loads(capsys.readouterr().out), fewstep.tabulate(fewstep.DDIM(eta=1), fewstep.VP(), steps=2)
    assert found["network_calls"] == 2
    assert [row["time"] for row in found["rows"]] == [row.t for row in table.rows]
    assert found["rows"][-1]["log_snr"] is None
    weights = [[term["weight"] for term in row["terms"]] for row in found["rows"]]
    assert weights == [[float(c) for _, c in row.form] for row in table.rows]
    assert found["noises"][0]["from"] == 1.0
    assert main(["explain", "ddim", "--process", "cld", "--steps", "1", "--json"]) == 0
    term = json.loads(capsys.readouterr().out)["rows"][1]["terms"][0]
    assert [len(line) for line in term["weight"]] == [2, 2]


def test_a_table_on_a_models_own_process_as_it_is_set_for_it(capsys):
    folder = str(SOURCE / "models" / "fashion-unet")
    assert main(["explain", "--model", folder, "--steps", "3"]) == 0
    out = capsys.readouterr().out
    assert "predicts='v'" in out
    assert "size=784" in out
    assert "leave one out" in refused(capsys, "explain", "ddim", "--model", folder, "--process", "vp")


@pytest.mark.parametrize("process", ["vp", "cld", "blurring"])
def test_explain_prints_the_table(capsys, process):
    assert main(["explain", "ddim", "--process", process, "--steps", "3"]) == 0
    assert len(capsys.readouterr().out.splitlines()) >= 3


def test_a_table_is_saved_and_explained_again(capsys, tmp_path):
    path = tmp_path / "new" / "table.safetensors"
    assert main(["explain", "ddim", "--steps", "3", "--option", "eta=0.5", "--save", str(path)]) == 0
    first = capsys.readouterr().out
    assert str(path) in first
    assert fewstep.Tableau.load(path).nfe == 3
    assert main(["explain", str(path)]) == 0
    assert first.startswith(capsys.readouterr().out)
    for option in (["--steps", "3"], ["--process", "vp"], ["--grid", "karras"], ["--option", "eta=0.5"]):
        assert f"leave {option[0]} out" in refused(capsys, "explain", str(path), *option)
    path.write_bytes(path.read_bytes()[:100])
    assert "not a whole fewstep table" in refused(capsys, "explain", str(path), code=1)


def test_a_table_that_cannot_be_written_is_one_sentence(capsys, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    assert "cannot write" in refused(capsys, "explain", "ddim", "--save", str(tmp_path / "file" / "table"), code=1)
