"""What a check found: verdicts, and the sheet they are printed on."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from fewstep.files import json_text

__all__ = ["Report", "Verdict"]

_MARKS = {"pass": "ok", "fail": "FAIL", "skip": "-"}
_COLOURS = {"pass": "\033[32m", "fail": "\033[1;31m", "skip": "\033[2m"}


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One promise, held against what was measured on one process.

    `status` is "pass", "fail" or "skip" (it does not apply; the sentence says why). `measured` and `claimed` are
    numbers where the promise is one; the sentence says what they are.
    """

    name: str
    process: str
    status: str
    measured: float | None = None
    claimed: float | None = None
    sentence: str = ""

    def line(self) -> tuple[str, str, str, str, str]:
        """Mark, name, measured, claimed and sentence, as they are printed."""
        return _MARKS[self.status], self.name, _number(self.measured), _number(self.claimed), self.sentence


@dataclass(frozen=True)
class Report:
    """The verdicts on one solver. `ok` when none failed; `str` is the sheet."""

    solver: str
    verdicts: tuple[Verdict, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing failed; what does not apply counts neither way."""
        return not self.failures

    @property
    def failures(self) -> tuple[Verdict, ...]:
        """The verdicts that are red."""
        return tuple(v for v in self.verdicts if v.status == "fail")

    @property
    def processes(self) -> tuple[str, ...]:
        """The processes that were asked, in order."""
        return tuple(dict.fromkeys(v.process for v in self.verdicts))

    def __getitem__(self, key: str | tuple[str, str]) -> Verdict:
        """The verdict of a name, or of (name, process)."""
        name, process = key if isinstance(key, tuple) else (key, None)
        for v in self.verdicts:
            if v.name == name and process in (None, v.process):
                return v
        raise KeyError(key)

    def __contains__(self, key: str | tuple[str, str]) -> bool:
        """Whether `report[key]` exists."""
        with suppress(KeyError):
            return bool(self[key])
        return False

    def __iter__(self) -> Iterator[Verdict]:
        return iter(self.verdicts)

    def __str__(self) -> str:
        return self.sheet()

    def sheet(self, *, colour: bool = False) -> str:
        """One block of lines for each process, and a last line that sums up."""
        blocks, titles = [], ("", "check", "measured", "claimed", "")
        wide = [max(map(len, column)) for column in zip(titles, *(v.line() for v in self.verdicts), strict=True)]
        head = _padded(titles, wide)
        for process in self.processes:
            block = [f"{self.solver} on {process}", head]
            for v in self.verdicts:
                if v.process == process:
                    line = _padded(v.line(), wide)
                    block.append(f"{_COLOURS[v.status]}{line}\033[0m" if colour else line)
            blocks.append("\n".join(block))
        return "\n\n".join([*blocks, self.summary()])

    def summary(self) -> str:
        """How many verdicts of each kind, and the names of the red ones."""
        count = {status: sum(v.status == status for v in self.verdicts) for status in _MARKS}
        text = f"{self.solver}: {count['pass']} passed, {count['fail']} failed, {count['skip']} do not apply"
        return text + "".join(f"\n  failed: {v.name} on {v.process}: {v.sentence}" for v in self.failures)

    def to_dict(self) -> dict[str, Any]:
        """Plain data: solver, ok, verdicts."""
        return {"solver": self.solver, "ok": self.ok, "verdicts": [asdict(v) for v in self.verdicts]}

    def to_json(self) -> str:
        """The same as JSON; numbers that are not finite are words."""
        return json_text(self.to_dict())


def _number(value: float | None) -> str:
    if value is None:
        return ""
    if value == math.inf:
        return "exact"
    if float(value).is_integer() and abs(value) < 1e6:
        return str(int(value))
    return f"{value:.2f}" if 0.05 <= abs(value) < 1e4 else f"{value:.1e}"


def _padded(line: tuple[str, ...], wide: list[int]) -> str:
    (mark, name, measured, claimed, sentence), (a, b, c, d, _) = line, wide
    return f"  {mark:<{a}}  {name:<{b}}  {measured:>{c}}  {claimed:>{d}}  {sentence}".rstrip()
