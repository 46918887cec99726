"""A whole run as one CUDA graph: the host starts it once, and no longer stands between the network's kernels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fewstep.loop.walk import Plan, walk

__all__ = ["Captured"]


class Captured:
    """A plan captured for states of one shape; each call replays it.

    A run has no data-dependent branch and reads nothing back (`tests/test_walk.py`), so it can be captured whole. Every
    replay reads the tensors that were there at the capture: a start, noises and given rows are copied into them, and
    what a denoiser has bound (labels) is changed in place by its owner.

    Args:
        plan: of the table, made with `like=` a state on the GPU.
        start: a state of the shape to come, on the GPU.
        noises: the noises of the table's intervals, as many as the table has.
        given: the table's given rows besides the start.
    """

    def __init__(
        self, plan: Plan, start: Tensor, noises: Sequence[Tensor] = (), given: Mapping[str, Tensor] | None = None
    ) -> None:
        if start.device.type != "cuda":
            raise ValueError(f"got a state on {start.device} to capture: CUDA graphs want a GPU, call walk instead")
        self.start, self.noises = start.clone(), [xi.clone() for xi in noises]
        self.given = {name: row.clone() for name, row in (given or {}).items()}
        self.graph = torch.cuda.CUDAGraph()
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.no_grad(), torch.cuda.stream(aside):
            for _ in range(2):  # libraries choose their kernels and take their memory before the capture
                walk(plan, self.start, self.noises, given=self.given)
        torch.cuda.current_stream().wait_stream(aside)
        with torch.no_grad(), torch.cuda.graph(self.graph):
            self.end = walk(plan, self.start, self.noises, given=self.given)

    def __call__(
        self, start: Tensor, noises: Sequence[Tensor] = (), given: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """The last state of a run from another start with other noises."""
        self.start.copy_(start)
        for mine, xi in zip(self.noises, noises, strict=True):
            mine.copy_(xi)
        for name, row in self.given.items():
            row.copy_((given or {})[name])
        self.graph.replay()
        return self.end.clone()
