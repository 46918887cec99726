"""Killed where files get their names, or at any moment of a training, commands leave whole files and end the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytest.importorskip("diffusers")
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forked")


def killed(*options: str) -> dict[str, int]:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    line = [sys.executable, str(ROOT / "benchmarks" / "kills.py"), *options]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=3000, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    del found["seconds"]
    return found


def test_killed_commands_leave_whole_files_and_end_the_same():
    assert killed("--most", "8") == {"kills": 8}


def test_killed_trainings_of_five_methods_end_in_the_same_weights():
    assert killed("--moments", "1") == {"kills": 5}


@pytest.mark.slow
def test_trainings_killed_a_hundred_times_end_in_the_same_weights():
    assert killed("--moments", "20") == {"kills": 100}


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--signal", "TERM"], ["--points", "all"]], ids=" ".join)
def test_a_hundred_kills_leave_whole_files_and_end_the_same(options):
    assert killed(*options)["kills"] >= 100
