"""Start-up: `import fewstep` and every public name beside `import torch`, and `fewstep --help` (no torch at all).

    python benchmarks/imports.py

Each number is the median of several fresh processes, run alternately. Aims: ratio at most 1.3, help without torch.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

CASES = {
    "python, nothing imported": "pass",
    "import torch": "import torch",
    "import fewstep": "import fewstep",
    "from fewstep import * (every public name)": "from fewstep import *",
    "fewstep --help": "import sys; from fewstep.cli import main; sys.argv[1:] = ['--help']; main()",
}


def seconds(code: str) -> float:
    """Returns the wall time of a fresh interpreter that runs `code`."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=7, help="processes for each number (default: 7)")
    repeat = parser.parse_args().repeat
    for code in CASES.values():  # fill the file cache
        seconds(code)
    taken: dict[str, list[float]] = {case: [] for case in CASES}
    for _ in range(repeat):
        for case, code in CASES.items():
            taken[case].append(seconds(code))
    median = {case: statistics.median(values) for case, values in taken.items()}
    for case, value in median.items():
        print(f"{case:<42} {value:7.3f} s   {value / median['import torch']:5.2f} of import torch")


if __name__ == "__main__":
    main()
