"""A thin run of the mutations of every reader that `benchmarks/mutate` makes by the thousand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
pytest.importorskip("diffusers")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits and processes are Linux's")


def run(*arguments):
    command = [sys.executable, str(ROOT / "benchmarks" / "mutate"), *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)


def test_mutated_inputs_are_refused_with_a_sentence_or_run():
    kinds = ("table", "rule", "process", "statistics", "npz", "pictures")
    done = run("--only", *kinds, "--count", "150", "--workers", "1")
    assert done.returncode == 0, done.stdout
    assert done.stdout.endswith("0 faults\n")
