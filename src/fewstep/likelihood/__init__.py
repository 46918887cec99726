"""Likelihood: log densities by the probability-flow ODE, variational bounds of ancestral tables, bits per dimension."""

from __future__ import annotations

from fewstep.likelihood.bits import bits_per_dim, dequantise
from fewstep.likelihood.bound import Bound, elbo
from fewstep.likelihood.closed_form import marginal_log_prob
from fewstep.likelihood.density import Likelihood, log_prob

__all__ = ["Bound", "Likelihood", "bits_per_dim", "dequantise", "elbo", "log_prob", "marginal_log_prob"]
