"""Small networks of torch alone, for points and vectors; networks of diffusers that are told more: a time, words."""

from fewstep.nets.small import MLP, Temporal
from fewstep.nets.told import Told
from fewstep.nets.waves import Waves
from fewstep.nets.worded import WordedUNet

__all__ = ["MLP", "Temporal", "Told", "Waves", "WordedUNet"]
