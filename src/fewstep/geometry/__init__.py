"""Moves along the probability-flow ODE and around it: encodings, local sampling, trajectories, chains over levels."""

from __future__ import annotations

from fewstep.geometry.chain import Chain, denoising_mcmc, likelihood_levels
from fewstep.geometry.encode import decode, encode, slerp
from fewstep.geometry.local import boomerang, jump
from fewstep.geometry.path import Trajectory, trajectory

__all__ = ["Chain", "Trajectory", "boomerang", "decode", "denoising_mcmc", "encode", "jump", "likelihood_levels",
           "slerp", "trajectory"]  # fmt: skip
