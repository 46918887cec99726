"""Small networks of torch alone, for points and vectors."""

from fewstep.nets.small import MLP, Temporal
from fewstep.nets.waves import Waves

__all__ = ["MLP", "Temporal", "Waves"]
