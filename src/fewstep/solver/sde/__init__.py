"""Solvers that add noise, or may: ancestral steps and the reverse SDE."""
