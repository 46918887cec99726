"""All kinds of input, one for each reader."""

from __future__ import annotations

import folders
import tables
from kind import Kind

__all__ = ["KINDS"]

KINDS: dict[str, Kind] = tables.KINDS | folders.KINDS
