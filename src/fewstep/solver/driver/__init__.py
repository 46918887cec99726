"""Drivers: samplers that choose while they run."""
