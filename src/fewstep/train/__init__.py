"""Training: data in, a resumable run, a model folder out. `fewstep.train(data, out, method=...)` is `train_student`."""

from __future__ import annotations

import sys
from types import ModuleType

from fewstep.data import Images as Images, read_images as read_images
from fewstep.train.card import add_quality, card, measure
from fewstep.train.loop import Stopped, TrainConfig, Trainer
from fewstep.train.methods import METHODS
from fewstep.train.run import TRAINABLE, train, write_sheet
from fewstep.train.students import train_student

__all__ = [
    "METHODS",
    "TRAINABLE",
    "Stopped",
    "TrainConfig",
    "Trainer",
    "add_quality",
    "card",
    "measure",
    "train",
    "train_student",
    "write_sheet",
]


class _Room(ModuleType):
    """This module, which can be called: the package's face has a function of its name."""

    __call__ = staticmethod(train_student)


sys.modules[__name__].__class__ = _Room
