"""Small networks of torch alone, for points and vectors; and a UNet that is told words."""

from fewstep.nets.small import MLP, Temporal
from fewstep.nets.waves import Waves
from fewstep.nets.worded import WordedUNet

__all__ = ["MLP", "Temporal", "Waves", "WordedUNet"]
