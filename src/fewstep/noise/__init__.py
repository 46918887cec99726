"""Random numbers as a function: named streams for each sample, and one Brownian path for each sample.

A generator with a state makes sample 17 depend on the sixteen drawn before it. Here sample 17 of seed 3 gets the same
bits in any batch, on any worker, in any order:

- `counter`: `Noise`, normals by (seed, sample, stream, k), from a generator that jumps to a sample;
- `brownian`: `BrownianPath`, the noise of an interval, the same path at twice as many steps;
- `binomial`: bits that are thrown anew, step by step, and the chain back;
- `source`: what `sample` asks, from a `Noise`, a `torch.Generator` or a ready tensor.
"""

from fewstep.noise.binomial import Binomial
from fewstep.noise.brownian import BrownianPath
from fewstep.noise.counter import STREAM, Noise
from fewstep.noise.source import GeneratorSource, NoiseSource, PathSource, TensorSource, noise_source

__all__ = [
    "STREAM", "Binomial", "BrownianPath", "GeneratorSource", "Noise", "NoiseSource", "PathSource", "TensorSource",
    "noise_source",
]  # fmt: skip
