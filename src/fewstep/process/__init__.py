"""Processes: what the noise does. One linear algebra (`base`), three kinds of coefficients (`operator`)."""

from __future__ import annotations

from fewstep.process.base import Process, ScalarProcess
from fewstep.process.blurring import Blurring, HeatDissipation, Masking, VEBlur
from fewstep.process.langevin import CLD
from fewstep.process.scalar import EDM, VE, VP, Cosine, Discrete, Flow, SubVP

__all__ = [
    "CLD",
    "EDM",
    "PROCESSES",
    "VE",
    "VP",
    "Blurring",
    "Cosine",
    "Discrete",
    "Flow",
    "HeatDissipation",
    "Masking",
    "Process",
    "ScalarProcess",
    "SubVP",
    "VEBlur",
]

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
