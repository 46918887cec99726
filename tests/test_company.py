"""Two processes that train together: the same gradients as one, and one folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fewstep.files import load_tensors
from fewstep.train.company import in_turn, same, shared
from fewstep.train.students import train_student

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="processes talk by gloo")

METHODS = {
    "flow": (),
    "progressive": (("steps", 4), ("to", 1)),  # a stage with a teacher that it made itself
    "consistency": (),
    "knowledge": (("pairs", 32), ("calls", 4)),  # recorded by the first, read by both
    "dmd": (),
}


def runs(folder: Path) -> None:
    """Four steps of each method, with a teacher where it has one."""
    x = np.random.default_rng(0).normal(size=(40, 2))
    few = {"batch": 8, "width": 8, "depth": 2, "quiet": True}
    for name, options in METHODS.items():
        base = folder.parent / "teacher"
        taught = base / ("edm" if name in ("consistency", "dmd") else "vp") / "model" if name != "flow" else None
        train_student(x, folder / name, method=name, teacher=taught, options=options, steps=4, **few)


def test_two_processes_have_the_gradient_of_one(tmp_path: Path, one_thread: None) -> None:
    x = np.random.default_rng(0).normal(size=(40, 2))
    for process in ("vp", "edm"):
        train_student(x, tmp_path / "teacher" / process, process=process, predicts="edm" if process == "edm" else "v",
                      batch=8, steps=2, width=8, depth=2, quiet=True)  # fmt: skip
    runs(tmp_path / "one")
    line = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", __file__, str(tmp_path / "two")]
    source = str(Path(__file__).parents[1] / "src")
    paths = os.pathsep.join([source, *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(line, env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths}, capture_output=True,
                          text=True, timeout=300, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    for name in METHODS:
        one, two = (load_tensors(tmp_path / who / name / "checkpoint.safetensors") for who in ("one", "two"))
        assert one.keys() == two.keys()
        for kind in ("m.", "v.", "net.", "ema."):  # the gradients' own mean, their squares', and what came of them
            a, b = (torch.cat([v[key].flatten() for key in sorted(v) if key.startswith(kind)]) for v in (one, two))
            assert float(a.abs().max()) > 0
            assert float((a - b).abs().max()) <= 2e-6 * float(a.abs().max()), (name, kind)
        assert {p.name for p in (tmp_path / "one" / name).iterdir()} == {
            p.name for p in (tmp_path / "two" / name).iterdir()
        }


def test_alone_there_is_nothing_to_share() -> None:
    assert shared(0.1, float("inf")) == [0.1, float("inf")]
    assert same("a") == "a"
    with in_turn():
        pass


if __name__ == "__main__":
    torch.set_num_threads(1)
    from fewstep.train.company import joined

    with joined():
        runs(Path(sys.argv[1]))
