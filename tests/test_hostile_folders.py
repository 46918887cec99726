"""No code of a folder is ever run, nothing outside of it opened, and nothing hangs: by an audit hook."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("diffusers")


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    """What came of every hostile folder, in a process of its own: an audit hook stays for good."""
    script = Path(__file__).parent / "hostile_folders.py"
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_hostile_folders_are_refused_in_a_sentence(report: dict[str, Any]) -> None:
    assert len(report["cases"]) > 30
    other = {
        k: v["outcomes"] for k, v in report["cases"].items() if any("ValueError: " not in o for o in v["outcomes"])
    }
    assert other == {}
    assert [k for k, v in report["cases"].items() if any("\n" in o for o in v["outcomes"])] == []


def test_nothing_of_them_is_run_or_opened(report: dict[str, Any]) -> None:
    assert {k: v["events"] for k, v in report["cases"].items() if v["events"] or v["mark"]} == {}


def test_none_takes_long(report: dict[str, Any]) -> None:
    assert {k: v["seconds"] for k, v in report["cases"].items() if v["seconds"] > 5} == {}


def test_the_floor_of_diffusers_is_one_that_refuses_too() -> None:
    import tomllib

    lines = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    floor = next(d for d in lines["optional-dependencies"]["diffusers"] if d.startswith("diffusers"))
    assert tuple(map(int, floor.partition(">=")[2].split("."))) >= (0, 38)
