"""Writes the tables of docs/interop.md from the names in `fewstep.interop.tool_names`.

python docs/names.py            # rewrites the blocks in place
python docs/names.py --check    # exit status 1 when a block is not what this would write
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from fewstep.interop.k_diffusion import SAMPLERS
from fewstep.interop.tool_names import ALIASES, LABELS, SCHEDULERS
from fewstep.solver import Solver
from fewstep.words.elsewhere import OTHERS

PAGE = Path(__file__).parent / "interop.md"

# Where a name's numbers are not the tool's own.
NOTES = {
    "lms": "k-diffusion's; ComfyUI's last step to 0 is the prediction",
    "dpm_fast": "on the given sigmas, where the tool makes its own, even in log sigma",
    "dpm_adaptive": "between the first and the last positive sigma; a denoising step follows where they end at 0",
    "dpmpp_sde": 'stages share one path; `noises="separate"` is the tool\'s own with independent noise',
    "ddim": "eta = 0 is `euler`, as in ComfyUI",
    "plms": "on the given sigmas; one call more than steps",
    "uni_pc": "the sigmas as they are, where ComfyUI puts 0.001 for a 0 at the end; order 3 from 4 steps on there",
    "uni_pc_bh2": "as `uni_pc`",
    "deis": "polynomials in sigma; ComfyUI's are in the time of VP (sigma 80 to 0.002), and Euler's step to 0",
    "er_sde": "the noise integral exact, where ComfyUI sums 200 rectangles",
    "sa_solver": "tau = 1 throughout, where ComfyUI has 0 in the first and last fifth of the time, and lower orders "
    "towards a 0 at the end",
    "restart": "detours at every number of steps, on the grid, where webui's begin at 20, on Karras levels of its own",
    "dpmpp_2m_cfg_pp": "2M on the unguided predictions, where ComfyUI's slope is guided less last unguided",
}

# Samplers of ComfyUI that no solver here is, and why.
LEFT_OUT = {
    "exp_heun_2_x0": "SEEDS-2 with its stage at the end of the step: calls the corrected state again",
    "exp_heun_2_x0_sde": "as `exp_heun_2_x0`",
    "dpmpp_2s_ancestral_cfg_pp": "CFG++ around a solver of two calls a step, which the paper does not define",
    "res_multistep_cfg_pp": "guidance is added to the state before the step, which is not the paper's CFG++",
    "res_multistep_ancestral": "its slope is measured from the lower level of the step before; see `dpmpp_2m_sde`",
    "res_multistep_ancestral_cfg_pp": "as both",
    "sa_solver_pece": "calls the corrected state again; `sa_solver` does not",
    "ar_video": "runs block after block of a video through a network with a cache",
}

# What a scheduler is, in the time of the model's process unless it says sigma.
SPACED = {
    "normal": "`uniform`, then 0",
    "karras": "`karras` in sigma, then 0",
    "exponential": "`exponential` in sigma, then 0",
    "sgm_uniform": "`sgm-uniform`, 0 for its last time",
    "simple": "even from t_max to 0; the tool rounds to entries of its table",
    "ddim_uniform": "every s-th entry of the table from its second on, then 0; starts below t_max",
    "beta": "`beta`, 0 for its last time; ComfyUI rounds to entries of its table, webui takes it in sigma",
    "linear_quadratic": "`linear-quadratic` of a flow, times sigma_max",
    "kl_optimal": "`kl-optimal` in sigma, then 0; webui's ends at sigma_min",
}


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
    return _markdown(("scheduler", "here"), [(f"`{name}`", SPACED[name]) for name in SCHEDULERS])


def left_out() -> str:
    """One line a sampler that has no counterpart."""
    return _markdown(("ComfyUI", "why it is left out"), [(f"`{name}`", why) for name, why in LEFT_OUT.items()])


def described(solver: Any) -> str:
    """A solver as its class and the options that are not the class's own defaults."""
    own = {f.name: value for f in fields(solver) if (value := getattr(solver, f.name)) != f.default}
    shown = (f"{k}={described(v) if isinstance(v, Solver) else repr(v)}" for k, v in own.items())
    return f"{type(solver).__name__}({', '.join(shown)})"


def elsewhere() -> str:
    """One line a name of ours, with what it is called in other tools."""
    lines = []
    for what, others in OTHERS.items():
        ours: dict[str, list[str]] = {}
        for other, name in others.items():
            ours.setdefault(name, []).append(f"`{other}`")
        lines += [(what, f"`{name}`", ", ".join(theirs)) for name, theirs in ours.items()]
    return _markdown(("", "here", "read as it"), lines)


BLOCKS = {"samplers": samplers, "elsewhere": elsewhere, "left out": left_out, "schedulers": schedulers}


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
