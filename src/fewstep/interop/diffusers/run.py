r"""A table, run one network call at a time by somebody else's loop.

A pipeline calls the network and hands its output to `step`. So a run stands (`fewstep.Standing`): `step` takes the
state that the network saw and its output, makes the rows up to the next evaluated one, and returns that one's state.
What came in is the row's state, whatever it was when it went out; rows that restate it (a corrector's, at the same
time) move by what was changed:

$$ z_j \leftarrow z_j + (1 - A_{jk}) (z_k^{in} - z_k^{out}). $$

States are kept in float32 (float64 where a pipeline's are): a state that comes back as it went out, rounded to the
pipeline's dtype, is the kept one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import torch
from diffusers.utils.outputs import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from fewstep.denoiser.base import Denoiser, Denoises
from fewstep.interop.diffusers.schedule import Schedule
from fewstep.loop.standing import Standing
from fewstep.loop.walk import After

__all__ = ["FewStepSchedulerOutput", "PipelineRun", "Runs"]

KEPT = 8  # unfinished runs beside the current one, should they go on


@dataclass
class FewStepSchedulerOutput(BaseOutput):
    """What `FewStepScheduler.step` returns.

    Attributes:
        prev_sample: the state at the next time step.
        pred_original_sample: the data prediction x0_hat of this one, clipped where that is asked for.
    """

    prev_sample: Tensor
    pred_original_sample: Tensor | None = None


class PipelineRun:
    """One run of a schedule: where it stands, and which state went out."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.kept: Tensor | None = None  # the state that went out
        self.start = torch.empty(0)
        self.generator: torch.Generator | None = None
        self.standing = Standing(schedule.table, answers=self._denoiser)

    def __getstate__(self) -> dict[str, Any]:
        """What a copy goes on from; its plan, which reads what its own run is told, is made again."""
        own = {name: value for name, value in vars(self).items() if name != "standing"}
        return own | {"made": self.standing.made, "live": self.standing.live}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["schedule"])
        self.standing.made, self.standing.live = state["made"], state["live"]
        vars(self).update({name: value for name, value in state.items() if name not in ("made", "live")})

    def __deepcopy__(self, memo: dict[int, Any]) -> PipelineRun:  # noqa: ARG002
        """The same run, to go on by itself."""
        twin = PipelineRun(self.schedule)
        twin.__setstate__(self.__getstate__())
        twin.standing.live = {symbol: z.clone() for symbol, z in twin.standing.live.items()}
        twin.generator = None if self.generator is None else self.generator.clone_state()
        return twin

    def _denoiser(self, answer: Denoises) -> Denoiser:
        """What makes x0_hat of what the pipeline's network returned."""
        denoiser = self.schedule.convention.denoiser(answer)
        return denoiser if self.schedule.clipping is None else self.schedule.clipping(denoiser)

    @property
    def done(self) -> int:
        """How many calls were made."""
        return self.standing.made

    @property
    def finished(self) -> bool:
        return self.standing.done

    def expects(self, timestep: float) -> bool:
        """Whether the next call is at that time step (in float32, as pipelines have it)."""
        return not self.finished and float(self.schedule.timesteps[self.done].float()) == timestep

    def gave(self, sample: Tensor) -> bool:
        """Whether a state is the one that went out last, unchanged."""
        kept = self.kept
        return kept is not None and kept.shape == sample.shape and bool((kept.to(sample) == sample).all())

    def step(self, output: Tensor, sample: Tensor, noises: Iterator[Tensor]) -> tuple[Tensor, Tensor]:
        """The state at the next call (at last: of the run) of what the network returned at `sample`; and x0_hat."""
        z, change = self._came_in(sample)
        if self.done == 0 and self.schedule.table.noises:
            self.start = z
        after = None if change is None else self._moving(change)
        predictions: list[Tensor] = []
        keep = lambda row, t, z, x0: predictions.append(x0)  # noqa: E731
        self.kept = self.standing.onward(output.to(z.dtype), z, noises, after=after, callback=keep)
        return self.kept.to(sample.dtype, copy=True), predictions[0].to(sample.dtype)

    def noises(self, sample: Tensor, generator: torch.Generator | list[torch.Generator] | None) -> Iterator[Tensor]:
        """Standard normals like a state, drawn when asked for; without a generator, from one its first state seeds."""
        dtype = torch.float64 if sample.dtype == torch.float64 else torch.float32
        while True:
            if generator is None and self.generator is None:
                start = blake2b(self.start.cpu().numpy().tobytes(), digest_size=8)
                self.generator = torch.Generator().manual_seed(int.from_bytes(start.digest()))
            yield randn_tensor(sample.shape, generator=generator or self.generator, device=sample.device, dtype=dtype)

    def _came_in(self, sample: Tensor) -> tuple[Tensor, Tensor | None]:
        """The state in the run's precision, and by how much it differs from the one that went out."""
        z = sample.to(torch.float64 if sample.dtype == torch.float64 else torch.float32, copy=True)
        if self.kept is None:
            return z, None
        z = torch.where(self.kept.to(sample) == sample, self.kept.to(z), z)
        return z, z - self.kept.to(z)

    def _moving(self, change: Tensor) -> After | None:
        """The hook that moves the later rows of the call's own time by what of its change does not reach them."""
        rows, (k, last) = self.schedule.table.rows, self.standing.span
        same = [j for j in range(k + 1, last + 1) if rows[j].t == rows[k].t and rows[j].given is None]
        share = {j: 1.0 - c for j in same if isinstance(c := rows[j].form.terms.get(("z", k), 0.0), float) and c != 1.0}
        return (lambda row, t, z: z.add(change, alpha=share[row]) if row in share else z) if share else None


class Runs:
    """The unfinished runs of a scheduler; `current` is the one begun last, None after `set_timesteps`."""

    def __init__(self) -> None:
        self.unfinished: list[PipelineRun] = []
        self.current: PipelineRun | None = None

    def fresh(self, timestep: float) -> bool:
        """Whether nothing has run since `set_timesteps`, nor waits for this time step from before."""
        return self.current is None and not any(run.expects(timestep) for run in self.unfinished)

    def at(self, timestep: float, sample: Tensor, schedule: Schedule) -> PipelineRun:
        """The run that a state belongs to, or a new one at the schedule's first time step.

        A state that came out of an unfinished run goes on in it. Any other is the current run's, changed by the
        pipeline.
        """
        self.unfinished = [run for run in self.unfinished if not run.finished]
        expecting = [run for run in self.unfinished if run.expects(timestep)]
        if expecting and expecting != [self.current]:
            for run in expecting:
                if run.gave(sample):
                    return run
        if self.current is not None and self.current in expecting:
            return self.current
        first = float(schedule.timesteps[0].float())
        if timestep == first:
            self.current = PipelineRun(schedule)
            self.unfinished = [*self.unfinished[-KEPT:], self.current]
            return self.current
        waiting = {float(run.schedule.timesteps[run.done].float()) for run in self.unfinished} or {first}
        raise ValueError(
            f"got a step at {timestep:g} where the next is at {' or '.join(f'{t:g}' for t in sorted(waiting))}: take "
            "the time steps in order, and give each of two runs at once a scheduler.fork() of its own"
        )
