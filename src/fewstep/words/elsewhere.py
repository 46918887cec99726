"""What other tools call our solvers, grids, predictions and times: diffusers, k-diffusion, ComfyUI, webui.

Case, spaces, `_` for `-` and `++` for `pp` are read alike everywhere, so that only names that differ beyond that stand
here. A name is a name of ours with the tool's defaults where we have them so; what differs in numbers is said in
docs/interop.md. webui's labels may end in a grid: "DPM++ 2M Karras".
"""

from __future__ import annotations

__all__ = ["OTHERS", "apart", "spelt"]

OTHERS: dict[str, dict[str, str]] = {
    "solver": {
        # k-diffusion, ComfyUI, webui
        "euler-a": "euler-ancestral",
        "dpm2": "dpm-solver-2",
        "dpm2-a": "dpm-2-ancestral",
        "dpmpp-2s-a": "dpmpp-2s-ancestral",
        "lms": "lms-4",
        "dpm-fast": "dpm-solver-fast",
        "dpm-adaptive": "dpm-adaptive-23",
        "uni-pc": "unipc-bh1-3",
        "uni-pc-bh2": "unipc-3",
        "unipc": "unipc-3",
        "ipndm": "ipndm-4",
        "deis": "deis-rhoab-2",
        "euler-cfg-pp": "ddim-cfgpp",
        "euler-ancestral-cfg-pp": "euler-ancestral-cfgpp",
        "dpmpp-2m-cfg-pp": "dpmpp-2m-cfgpp",
        "dpmpp-sde-gpu": "dpmpp-sde",
        "dpmpp-2m-sde-gpu": "dpmpp-2m-sde",
        "dpmpp-2m-sde-heun-gpu": "dpmpp-2m-sde-heun",
        "dpmpp-3m-sde-gpu": "dpmpp-3m-sde",
        # diffusers: classes, and the words of their configs
        "ddimscheduler": "ddim",
        "ddpmscheduler": "ddpm",
        "pndmscheduler": "plms",
        "lcmscheduler": "lcm",
        "eulerdiscretescheduler": "ddim",
        "eulerancestraldiscretescheduler": "euler-ancestral",
        "heundiscretescheduler": "heun",
        "kdpm2discretescheduler": "dpm-solver-2",
        "kdpm2ancestraldiscretescheduler": "dpm-2-ancestral",
        "lmsdiscretescheduler": "lms-4",
        "dpmsolvermultistepscheduler": "dpmpp-2m",
        "dpmsolversinglestepscheduler": "dpmpp-2s",
        "dpmsolversdescheduler": "dpmpp-sde",
        "cosinedpmsolvermultistepscheduler": "dpmpp-2m-sde",
        "edmdpmsolvermultistepscheduler": "dpmpp-2m",
        "edmeulerscheduler": "ddim",
        "unipcmultistepscheduler": "unipc-2",
        "deismultistepscheduler": "deis-rhoab-1",
        "sasolverscheduler": "sa-solver",
        "ipndmscheduler": "ipndm-4",
        "flowmatcheulerdiscretescheduler": "euler",
        "flowmatchheundiscretescheduler": "heun",
        "flowmatchlcmscheduler": "lcm",
        "dpmsolverpp": "dpmpp-2m",
        "sde-dpmsolverpp": "dpmpp-2m-sde",
        "sde-dpmsolver": "dpm-2m-sde",
        "fewstepscheduler": "default",
    },
    "grid": {
        "automatic": "default",
        "normal": "uniform",
        "simple": "uniform",
        "ddim-uniform": "uniform",
        "linspace": "uniform",
        "trailing": "sgm-uniform",
        "polyexponential": "exponential",
        "align-your-steps": "ays",
        "use-karras-sigmas": "karras",
        "use-exponential-sigmas": "exponential",
        "use-beta-sigmas": "beta",
        "use-lu-lambdas": "log-snr",
        "use-flow-sigmas": "flow-shift",
        "quadratic": "power",
    },
    "predicts": {
        "epsilon": "noise",
        "eps": "noise",
        "v-prediction": "v",
        "v-pred": "v",
        "velocity": "v",
        "sample": "data",
        "x0": "data",
        "x-start": "data",
        "original-sample": "data",
        "flow-prediction": "flow",
        "vector-field": "flow",
    },
    "process": {
        "rectified-flow": "flow",
        "flow-matching": "flow",
        "variance-preserving": "vp",
        "variance-exploding": "ve",
    },
    "time": {
        "timestep": "index",
        "timesteps": "index",
        "discrete": "index",
        "integer": "index-int",
        "index-long": "index-int",
        "continuous": "t",
        "c-noise": "log-sigma/4",
        "sigmas": "sigma",
    },
}
ENDS = ("karras", "exponential", "beta", "sgm-uniform", "normal", "simple", "ddim-uniform", "kl-optimal",
        "align-your-steps", "linear-quadratic", "polyexponential", "uniform")  # fmt: skip


def spelt(name: str, what: str) -> str:
    """What a word of another tool is here, whether there is such a thing or not."""
    word = name.strip().lower().replace("++", "pp").replace("_", "-").replace(" ", "-").removeprefix("sample-")
    return OTHERS.get(what, {}).get(word, word)


def apart(label: str) -> tuple[str, str | None]:
    """(solver, grid or None) of a label that may end in a grid."""
    word = spelt(label, "")
    end = next((end for end in ENDS if word.endswith(f"-{end}")), None)
    return (label, None) if end is None else (word.removesuffix(f"-{end}"), spelt(end, "grid"))
