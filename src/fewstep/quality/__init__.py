"""How good samples are: a classifier as feature space, distances between feature sets, fidelity and coverage."""

from __future__ import annotations

from fewstep.quality.classifier import (
    Classifier,
    accuracy,
    images_to_tensor,
    load_classifier,
    save_classifier,
    train_classifier,
)
from fewstep.quality.metrics import (
    KernelDistance,
    Neighbours,
    Quality,
    Yardstick,
    compare,
    frechet_distance,
    frechet_gaussians,
    interval,
    kernel_distance,
    neighbours,
    precision_recall,
    resamples,
)
from fewstep.quality.reference import Reference, load_reference, save_reference

__all__ = ["Classifier", "KernelDistance", "Neighbours", "Quality", "Reference", "Yardstick", "accuracy", "compare",
           "frechet_distance", "frechet_gaussians", "images_to_tensor", "interval", "kernel_distance",
           "load_classifier", "load_reference", "neighbours", "precision_recall", "resamples", "save_classifier",
           "save_reference", "train_classifier"]  # fmt: skip
