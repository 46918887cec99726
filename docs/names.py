"""Writes the tables of docs/interop.md from the names in `fewstep.interop.tool_names`.

python docs/names.py            # rewrites the blocks in place
python docs/names.py --check    # exit status 1 when a block is not what this would write
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from fewstep.interop.k_diffusion import SAMPLERS
from fewstep.interop.tool_names import ALIASES, LABELS, LEFT_OUT, NOTES, SCHEDULERS, described

PAGE = Path(__file__).parent / "interop.md"


def samplers() -> str:
    """One line a name of the tools."""
    labels: dict[str, list[str]] = {}
    for label, name in LABELS.items():
        labels.setdefault(name, []).append(label)
    lines = []
    for name, target in ALIASES.items():
        here = f"`{target}`" if isinstance(target, str) else f"`{described(SAMPLERS[name]())}`"
        lines.append((f"`{name}`", ", ".join(labels.get(name, [])), here, NOTES.get(name, "")))
    return _markdown(("k-diffusion, ComfyUI", "webui", "here", "what differs"), lines)


def schedulers() -> str:
    """One line a scheduler."""
    return _markdown(("scheduler", "here"), [(f"`{name}`", text) for name, (_, text) in SCHEDULERS.items()])


def left_out() -> str:
    """One line a sampler that has no counterpart."""
    return _markdown(("ComfyUI", "why it is left out"), [(f"`{name}`", why) for name, why in LEFT_OUT.items()])


BLOCKS = {"samplers": samplers, "left out": left_out, "schedulers": schedulers}


def fill(text: str) -> str:
    """The page with every block written anew."""
    for name, make in BLOCKS.items():
        pattern = re.compile(rf"(<!-- {name}:[^>]*-->\n).*?(<!-- end {name} -->)", re.DOTALL)
        assert pattern.search(text), f"the page has lost its block {name}"
        block = make()
        text = pattern.sub(lambda found, block=block: f"{found[1]}\n{block}\n\n{found[2]}", text)
    return text


def main(argv: Sequence[str]) -> int:
    """Writes or checks the page; returns the exit status."""
    old = PAGE.read_text(encoding="utf-8")
    new = fill(old)
    if "--check" in argv:
        return int(new != old)
    PAGE.write_text(new, encoding="utf-8")
    return 0


def _markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *lines])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
