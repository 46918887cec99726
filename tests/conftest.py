"""What every test shares: one thread, a fixed seed, and a cache of its own for the paces that are measured."""

from __future__ import annotations

import atexit
import gc
import os
import shutil
import tempfile

import pytest
import torch

torch.set_num_threads(1)
if "FEWSTEP_CACHE" not in os.environ:  # the workers of a run inherit it, and share what one of them has measured
    os.environ["FEWSTEP_CACHE"] = tempfile.mkdtemp(prefix="fewstep-cache-")
    atexit.register(shutil.rmtree, os.environ["FEWSTEP_CACHE"], ignore_errors=True)


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def pytest_collection_finish() -> None:
    """What is collected stays to the end: it need not be looked through by every collection of garbage."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)
