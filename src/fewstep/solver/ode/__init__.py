"""Solvers of the probability-flow ODE: exponential, multistep, singlestep, Runge-Kutta, Taylor."""
