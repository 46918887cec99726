"""Solvers around a solver: guidance apart, a corrector after, other first and last steps."""
