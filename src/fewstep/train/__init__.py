"""Training: images in, a resumable run, a model folder out."""

from __future__ import annotations

from fewstep.data import Images as Images, read_images as read_images
from fewstep.train.card import add_quality, card
from fewstep.train.loop import Stopped, TrainConfig, Trainer
from fewstep.train.measure import measure
from fewstep.train.run import TRAINABLE, train, write_sheet

__all__ = [
    "TRAINABLE",
    "Stopped",
    "TrainConfig",
    "Trainer",
    "add_quality",
    "card",
    "measure",
    "train",
    "write_sheet",
]
