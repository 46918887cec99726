"""The methods of training by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from fewstep.train.methods.base import Method, Setting
from fewstep.train.methods.consistency import (
    Consistency,
    ConsistencyTraining,
    EasyConsistency,
    ImprovedConsistency,
)
from fewstep.train.methods.denoise import Denoise, Flow, Score
from fewstep.train.methods.progressive import Progressive

__all__ = ["METHODS", "Method", "Setting"]

METHODS: dict[str, Callable[..., Method]] = {
    "denoise": Denoise,
    "score": Score,
    "flow": Flow,
    "ot-flow": partial(Flow, coupling="transport"),
    "progressive": Progressive,
    "consistency": Consistency,
    "consistency-training": ConsistencyTraining,
    "improved-consistency": ImprovedConsistency,
    "easy-consistency": EasyConsistency,
}
