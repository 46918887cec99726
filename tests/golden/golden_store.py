"""The folder of golden numbers: entries, grids and arrays, as they are read."""

from __future__ import annotations

import gzip
import json
import os
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from torch import Tensor

from fewstep.denoiser import Mixture
from fewstep.process import Process

__all__ = ["OTHER", "Entry", "Store", "absent", "store"]

HERE = Path(__file__).resolve().parent
OTHER = os.environ.get("FEWSTEP_GOLDEN")  # another folder, relative to the repository's root


def absent(what: str) -> NoReturn:
    """What another folder lacks is skipped; the numbers of this one are all there."""
    if OTHER:
        pytest.skip(f"{OTHER} has no {what}")
    pytest.fail(f"{HERE} has no {what}")


@dataclass(frozen=True, eq=False)
class Entry:
    """One run of a reference implementation."""

    number: int
    raw: dict[str, Any]
    store: Store

    @property
    def impl(self) -> str:
        """The implementation; of a package its class, without the version."""
        package, _, rest = self.raw["impl"].partition("==")
        return f"{package}/{rest.partition('/')[2]}" if rest else package

    @property
    def config(self) -> dict[str, Any]:
        return self.raw["config"]

    @property
    def d(self) -> int:
        return self.raw["d"]

    @property
    def label(self) -> str:
        return f"entry {self.number}: {self.raw['impl']} {json.dumps(self.config)} nfe={self.raw['nfe']}"

    def grid(self, name: str) -> list[float]:
        """A grid by name; KeyError when the entry has none."""
        return list(self.store.json["grids"][self.raw["grids"][name]])

    @property
    def ends(self) -> list[float]:
        """[alpha_s, sigma_s, alpha_e, sigma_e]."""
        return self.store.json["ends"][self.raw["ends"]]

    @cached_property
    def final(self) -> Tensor:
        array, row = self.raw["final"]
        return torch.from_numpy(np.array(self.store.npz[array][row]))

    @property
    def finite(self) -> bool:
        return not self.raw.get("nonfinite") and bool(self.final.isfinite().all())

    @property
    def x_T(self) -> Tensor:
        return torch.tensor(self.store.problem(self.d)["x_T"], dtype=torch.float64)

    @property
    def noise(self) -> Tensor:
        """Noise request j of a run gets row j."""
        return self.store.array(f"noise_table_d{self.d}")


@dataclass(frozen=True, eq=False)
class Store:
    path: Path

    @cached_property
    def json(self) -> dict[str, Any]:
        plain = self.path / "golden.json"
        if plain.is_file():
            return json.loads(plain.read_bytes())
        return json.loads(gzip.decompress(plain.with_suffix(".json.gz").read_bytes()))

    @cached_property
    def npz(self) -> dict[str, np.ndarray]:
        with np.load(self.path / "golden.npz") as file:
            return {name: file[name] for name in file.files}

    @cached_property
    def entries(self) -> list[Entry]:
        return [Entry(i, raw, self) for i, raw in enumerate(self.json["entries"])]

    def problem(self, d: int) -> dict[str, Any]:
        return self.json["meta"]["problem"][f"d{d}"]

    @lru_cache(maxsize=64)  # noqa: B019 - one store, and each of its processes with many grids
    def mixture(self, process: Process, d: int) -> Mixture:
        """The exact denoiser of the problem on a process."""
        p = self.problem(d)
        means, stds, weights = (torch.tensor(p[k], dtype=torch.float64) for k in ("means", "stds", "weights"))
        return Mixture(process, means, stds, weights)

    def array(self, name: str) -> Tensor:
        return torch.from_numpy(np.array(self.npz[name]))


@lru_cache(maxsize=1)
def store() -> Store:
    """This folder's numbers, or those of the folder that FEWSTEP_GOLDEN names."""
    return Store(HERE.parents[1] / OTHER if OTHER else HERE)
