"""The methods of training by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from fewstep.train.drifts.manifold import RiemannianFlow, RiemannianScore
from fewstep.train.drifts.schroedinger import Alternating
from fewstep.train.methods.base import Method, Setting
from fewstep.train.methods.bridge import Restoration
from fewstep.train.methods.consistency import (
    Consistency,
    ConsistencyTraining,
    EasyConsistency,
    ImprovedConsistency,
)
from fewstep.train.methods.curvature import Curvature
from fewstep.train.methods.denoise import Denoise, Flow, Score
from fewstep.train.methods.guided import Guided, LatentConsistency
from fewstep.train.methods.heads import Genie, Variance
from fewstep.train.methods.progressive import Progressive
from fewstep.train.methods.recorded import Knowledge, Operator, Reflow
from fewstep.train.methods.scores import ScoreMatching
from fewstep.train.methods.two_times import Continuous, MeanFlow, Shortcut, Trajectory
from fewstep.train.methods.vdm import Variational

__all__ = ["METHODS", "Method", "Setting"]

METHODS: dict[str, Callable[..., Method]] = {
    "denoise": Denoise,
    "score": Score,
    "flow": Flow,
    "ot-flow": partial(Flow, coupling="transport"),
    "curvature": Curvature,
    "vdm": Variational,
    "reflow": Reflow,
    "knowledge": Knowledge,
    "operator": Operator,
    "progressive": Progressive,
    "guided": Guided,
    "consistency": Consistency,
    "consistency-training": ConsistencyTraining,
    "improved-consistency": ImprovedConsistency,
    "easy-consistency": EasyConsistency,
    "latent-consistency": LatentConsistency,
    "continuous": Continuous,
    "trajectory": Trajectory,
    "shortcut": Shortcut,
    "mean-flow": MeanFlow,
    "dmd": ScoreMatching,
    "sid": partial(ScoreMatching, a=1.0),
    "riemannian-score": RiemannianScore,
    "riemannian-flow": RiemannianFlow,
    "dsb": Alternating,
    "dsbm": partial(Alternating, kind="dsbm"),
    "fbsde": partial(Alternating, kind="fbsde"),
    "genie": Genie,
    "npr": Variance,
    "sn": partial(Variance, kind="sn"),
    "bridge": Restoration,
}
