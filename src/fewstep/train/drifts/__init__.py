"""Methods that learn no denoiser: fields on manifolds, and the drifts of Schroedinger bridges."""
