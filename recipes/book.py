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

# The variance of Fashion-MNIST at each distance from the mean in its cosine basis, pictures of 28 x 28 in [-1, 1].
CLOTHES = (49.5, 5.61, 16.0, 2.4, 3.62, 0.8, 1.41, 0.514, 0.817, 0.296, 0.533, 0.206, 0.294, 0.152, 0.177, 0.122, 0.12,
           0.0886, 0.0975, 0.0768, 0.0787, 0.0591, 0.0581, 0.0498, 0.0449, 0.0372, 0.0401, 0.0349, 0.0172, 0.0137,
           0.0119, 0.0103, 0.00947, 0.00783, 0.00747, 0.00639, 0.00593, 0.00544, 0.00606)  # fmt: skip
RESULTS = Path(__file__).parent / "results"


def clothes() -> torch.Tensor:
    """The variance of every mode of clothes, (28, 28)."""
    f = torch.arange(28, dtype=torch.float64)
    return torch.tensor(CLOTHES, dtype=torch.float64)[torch.hypot(f[:, None], f).round().long()]


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
