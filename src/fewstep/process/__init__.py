"""Processes: what the noise does. One linear algebra (`base`), three kinds of coefficients (`operator`)."""

from __future__ import annotations

from fewstep.process.base import Process
from fewstep.process.blurring import Blurring, HeatDissipation, Masking, VEBlur
from fewstep.process.bridge import Bridge
from fewstep.process.bridges import DDBMVE, DDBMVP, GOUB, I2SB, IRSDE, InDI, Interpolant, ResShift, UniDB
from fewstep.process.langevin import CLD
from fewstep.process.scalar import EDM, VE, VP, Cosine, Discrete, Flow, ScalarProcess, SubVP

__all__ = [
    "ALL_PROCESSES", "BRIDGES", "Blurring", "Bridge", "CLD", "Cosine", "DDBMVE", "DDBMVP", "Discrete", "EDM", "Flow",
    "GOUB", "HeatDissipation", "I2SB", "IRSDE", "InDI", "Interpolant", "Masking", "PROCESSES", "Process", "ResShift",
    "ScalarProcess", "SubVP", "UniDB", "VE", "VEBlur", "VP"
]  # fmt: skip

PROCESSES = {
    "vp": VP,
    "ve": VE,
    "sub-vp": SubVP,
    "cosine": Cosine,
    "edm": EDM,
    "flow": Flow,
    "cld": CLD,
    "blurring": Blurring,
    "discrete": Discrete,
    "ve-blur": VEBlur,
    "heat": HeatDissipation,
    "masking": Masking,
}

# Bridges run between data and another end that is given: what starts from noise alone is no run of theirs.
BRIDGES = {
    "i2sb": I2SB,
    "ddbm-ve": DDBMVE,
    "ddbm-vp": DDBMVP,
    "ir-sde": IRSDE,
    "goub": GOUB,
    "unidb": UniDB,
    "indi": InDI,
    "resshift": ResShift,
    "interpolant": Interpolant,
}

ALL_PROCESSES = {**PROCESSES, **BRIDGES}
