"""Which of a scheduler's runs a step belongs to: abandoned, interleaved, begun anew."""

from __future__ import annotations

from torch import Tensor

from fewstep.interop.diffusers.run import PipelineRun
from fewstep.interop.diffusers.schedule import Schedule

__all__ = ["Runs"]

KEPT = 8  # unfinished runs beside the current one, should they go on


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

        Raises:
            ValueError: where no run is at this time step.
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
