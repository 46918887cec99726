"""The page in a browser: clicked, with the keyboard alone, on a screen 360 pixels wide.

Skipped where there is no Chromium, node or playwright-core in .venv/browser (or NODE_PATH); .ci/run installs them.
Screenshots stay in out/page.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from test_page import free_port

ROOT = Path(__file__).parent.parent
SHOTS = ROOT / "out" / "page"
MODULES = Path(os.environ.get("NODE_PATH", ROOT / ".venv" / "browser" / "node_modules"))
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or ""

missing = [name for name, there in [
    ("chromium", CHROMIUM), ("node", shutil.which("node")), ("playwright-core", (MODULES / "playwright-core").is_dir()),
] if not there]  # fmt: skip
pytestmark = pytest.mark.skipif(bool(missing), reason=f"no browser to drive: {', '.join(missing)} not installed")


def visit(profile: Path) -> dict:
    """What one visit saw, and how the server ended after Ctrl-C."""
    port = free_port()
    SHOTS.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src"), "TMPDIR": str(profile.parent)}
    server = subprocess.Popen([sys.executable, "-m", "fewstep", "ui", "--port", str(port)], env=environment, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    try:
        assert server.stdout is not None
        said = server.stdout.readline()
        assert said == f"fewstep ui is on http://127.0.0.1:{port} until Ctrl-C\n"
        driven = subprocess.run(
            ["node", str(ROOT / "tests" / "page_browser.cjs"), said.split()[4], str(SHOTS), str(profile)],
            env={**os.environ, "NODE_PATH": str(MODULES), "CHROMIUM": CHROMIUM}, text=True, capture_output=True,
            timeout=150,
        )  # fmt: skip
        assert driven.stdout, driven.stderr
        found = json.loads(driven.stdout)
        assert driven.returncode == 0, found["failed"]
    finally:
        server.send_signal(signal.SIGINT)
        rest, errors = server.communicate(timeout=30)
    left = [path.name for path in profile.parent.glob("fewstep-*")]
    return found | {"ended": (server.returncode, rest, errors, left)}


def test_the_page_in_a_browser(tmp_path):  # one test, so that there is one visit however the tests are spread
    pytest.importorskip("gradio")
    seen = visit(tmp_path / "profile")
    assert seen["ended"] == (0, "", "", [])

    # it opens on a result
    assert seen["kept"].startswith("default: 10 network calls each")
    assert min(seen["opened"]) < 2000  # ms; the first visit reads the browser's own files too

    # a click makes pictures, call by call, from two solvers, and their difference
    assert seen["first"].startswith("default: ")
    assert len(seen["pictures"]) == 3
    assert min(seen["pictures"]) > 300
    assert "root mean square" in seen["difference"]
    for name in ("samples", "samples-360", "refused-360", "playground", "playground-360"):
        assert (SHOTS / f"{name}.png").stat().st_size > 20_000

    # the files are of that run, and the Python repeats it
    assert json.loads((SHOTS / "run.json").read_text())["network_calls"] == 10
    names: dict[str, torch.Tensor] = {}
    exec(seen["python"], names)
    np.testing.assert_allclose(names["x"], np.load(SHOTS / "samples.npz")["samples"], atol=0.02)  # bfloat16

    # an option that a field sets is in the Python
    assert 'solver=fs.DDIM(eta=0.5), steps=10, final="zero"' in seen["other"]

    # a mistake is a sentence on the page and at its field, nothing old stays, and a run can be stopped
    assert seen["alert"] == "got eta='much': give a number"
    assert seen["alert"] in seen["refused"]
    assert seen["stale"] == 0
    assert " of 100" in seen["stopped"]

    # the keyboard is enough, in the order of the page, and leaves no list open behind
    assert seen["typed"].startswith("dpmpp-2m: 10 network calls each")
    places = [seen["order"].index(name) for name in ("Playground", "Model", "Solver", "Grid", "Seed", "Sample", "Draw")]
    assert places == sorted(places)
    assert seen["lists"] == 0

    # every control has a name, nothing is wider than a phone, nothing is asked from outside
    assert seen["nameless"] == []
    assert max(seen["overflow"]) <= 0
    assert seen["outside"] == []
    assert seen["errors"] == []
