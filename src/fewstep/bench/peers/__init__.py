"""Other libraries' samplers as contenders: the same network, the same noise, in the same process."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from importlib import import_module

from fewstep.bench.contender import Contender

__all__ = ["LIBRARIES", "peers"]

LIBRARIES = {"diffusers": "diffusers", "k-diffusion": "k_diffusion", "torchdiffeq": "torchdiffeq"}


def peers(patterns: Sequence[str]) -> tuple[list[Contender], dict[str, str]]:
    """The peers whose names fit one of the patterns (none: all), and the libraries that are missing, with the reason.

    A pattern that fits nothing in the libraries that are here is refused.
    """
    found: list[Contender] = []
    missing: dict[str, str] = {}
    for library, module in LIBRARIES.items():
        try:
            found += import_module(f"fewstep.bench.peers.{module}").contenders()
        except ModuleNotFoundError as error:
            missing[library] = f"{error.name} is not installed"
    for pattern in patterns:
        library = pattern.partition("/")[0]
        if not any(fnmatchcase(c.name, pattern) for c in found) and library not in missing:
            raise ValueError(
                f"got the peer {pattern!r}, which fits none of {len(found)}: names are LIBRARY/SAMPLER@GRID with * for "
                f"any, as 'diffusers/dpm++2m@karras'"
            )
    chosen = [c for c in found if not patterns or any(fnmatchcase(c.name, pattern) for pattern in patterns)]
    return chosen, missing
