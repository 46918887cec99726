"""Guidance: denoisers around denoisers, and the log probabilities, observations and rules they take."""

from __future__ import annotations

from fewstep.denoiser.guidance.classifier import ClassifierGuided
from fewstep.denoiser.guidance.composition import AnyOf, Complement, Composed, conjunction, disjunction, negation
from fewstep.denoiser.guidance.inverse import DDNM, dps, pigdm
from fewstep.denoiser.guidance.observation import Observation
from fewstep.denoiser.guidance.replacement import Replacement
from fewstep.denoiser.guidance.similarity import SIMILARITIES, Similarity
from fewstep.denoiser.guidance.threshold import Thresholded
from fewstep.denoiser.guidance.update import APG, Rescale

__all__ = [
    "APG", "DDNM", "SIMILARITIES", "AnyOf", "ClassifierGuided", "Complement", "Composed", "Observation", "Replacement",
    "Rescale", "Similarity", "Thresholded", "conjunction", "disjunction", "dps", "negation", "pigdm"
]  # fmt: skip
