"""What the recipes share: `--short`, the figures on the screen, and the file that a whole run leaves.

python recipes/NAME.py            # prints its figures and writes them to recipes/results/NAME.json
python recipes/NAME.py --short    # the same in seconds, with wider bounds; writes nothing
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path

import torch

from fewstep.files import write_json
from fewstep.pace import hardware

RESULTS = Path(__file__).parent / "results"


def run(recipe: Callable[[bool], dict[str, float]], about: str | None, *, seeds: Sequence[int] = (0,)) -> None:
    """Runs a recipe, which asserts its figures before it returns them, and prints them; kept where it ran whole.

    Args:
        recipe: `main(short)` of the script, which returns figures by name.
        about: the script's docstring.
        seeds: that it draws from.
    """
    script = Path(recipe.__code__.co_filename)
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="in seconds, with wider bounds; writes nothing")
    short = parser.parse_args().short
    figures = {name: float(f"{value:.3g}") for name, value in recipe(short).items()}
    for name, value in figures.items():
        print(f"{name:<40} {value:g}")
    if not short:
        made = {"date": str(date.today()), "torch": torch.__version__, "machine": hardware(), "seeds": list(seeds)}
        command = f"python recipes/{script.name}"
        write_json(RESULTS / f"{script.stem}.json", made | {"command": command, "figures": figures})
