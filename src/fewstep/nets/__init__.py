"""Small networks of torch alone, for points and vectors."""

from fewstep.nets.small import MLP, Temporal

__all__ = ["MLP", "Temporal"]
