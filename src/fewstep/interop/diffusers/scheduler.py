"""`FewStepScheduler`: any solver or fitted table as the scheduler of a diffusers pipeline.

pipe.scheduler = FewStepScheduler.from_config(pipe.scheduler.config, solver="unipc-3")
image = pipe("a lighthouse", num_inference_steps=8).images[0]
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerMixin
from torch import Tensor

from fewstep.files import read_json
from fewstep.interop.diffusers.convention import convention_of, translated
from fewstep.interop.diffusers.run import FewStepSchedulerOutput, Runs
from fewstep.interop.diffusers.saved import (
    completed,
    refuse_option,
    refuse_others,
    scheduler_file,
    solver_of,
    student_of,
)
from fewstep.interop.diffusers.schedule import Schedule, clipping_of, from_row
from fewstep.interop.diffusers.times import table_for
from fewstep.loop.excess import warn_of_excess
from fewstep.loop.tabulate import own_of
from fewstep.process import Process
from fewstep.process.config import process_to_json
from fewstep.solver import SOLVERS
from fewstep.tableau import Tableau
from fewstep.words import pick, placed, typed

__all__ = ["FewStepScheduler"]


class FewStepScheduler(SchedulerMixin, ConfigMixin):
    r"""Runs a table of this library step by step inside a diffusers pipeline.

    `num_inference_steps` is the most network calls a run may take; a call inside a step of a singlestep solver is a
    time step of its own, so `order` is 1 and `timesteps` has one entry a call. States are z = alpha x0 + sigma eps of
    `process`; `fewstep.sample(denoiser, process, solver=scheduler.table, ...)` runs the same.

    Args:
        solver: a name in `fewstep.TABLES`, a solver, a table or the path of a saved one; a student (`fewstep.Model`) or
            its folder, whose own tables run on its own process; None is the default solver.
        grid: a name in `fewstep.GRIDS`; None is what the config asks for (`use_karras_sigmas`, ..., a flow's shift)
            and else the process's default grid.
        process: one of this library's scalar processes, for networks trained with it; None reads the config.
        prediction_type: "epsilon", "v_prediction", "sample" or "flow_prediction".
        num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas, rescale_betas_zero_snr,
            snr_shift_scale: the table of betas the network was trained with.
        shift, use_flow_sigmas, flow_shift, use_dynamic_shifting, time_shift_type, shift_terminal, invert_sigmas: a flow
            and how its time steps are shifted.
        sigma_min, sigma_max, sigma_data, sigma_schedule, rho, timestep_type: EDM's preconditioning, or levels beyond
            the betas.
        use_karras_sigmas, use_exponential_sigmas, use_beta_sigmas: the spacing of the levels.
        final_sigmas_type, set_alpha_to_one: end at sigma = 0 ("zero", True, or neither given), where the solver can;
            else ("sigma_min", False) at the process's last time.
        clip_sample, clip_sample_range, thresholding, dynamic_thresholding_ratio, sample_max_value: see
            `fewstep.Thresholded`.

    Raises:
        ValueError: where the config does not say what the network predicts, or the solver cannot run in a pipeline:
            drivers choose their steps while they run, and solvers that read other outputs of a network have none.
    """

    _compatibles = [kind.name for kind in KarrasDiffusionSchedulers] + [
        "UniPCMultistepScheduler", "SASolverScheduler", "FlowMatchEulerDiscreteScheduler",
        "FlowMatchHeunDiscreteScheduler", "EDMDPMSolverMultistepScheduler", "CogVideoXDDIMScheduler", "LCMScheduler",
        "DDPMWuerstchenScheduler", "UnCLIPScheduler", "FlowMatchLCMScheduler", "EDMEulerScheduler", "TCDScheduler",
    ]  # fmt: skip
    order = 1

    @register_to_config
    @typed
    def __init__(
        self,
        solver: Any = None,
        grid: str | None = None,
        process: Any = None,
        prediction_type: str | None = None,
        num_train_timesteps: int = 1000,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Any = None,
        rescale_betas_zero_snr: bool = False,
        snr_shift_scale: float | None = None,
        shift: float | None = None,
        use_flow_sigmas: bool = False,
        flow_shift: float | None = None,
        use_dynamic_shifting: bool = False,
        time_shift_type: str = "exponential",
        shift_terminal: float | None = None,
        invert_sigmas: bool = False,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        sigma_data: float | None = None,
        sigma_schedule: str | None = None,
        rho: float = 7.0,
        timestep_type: str | None = None,
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        final_sigmas_type: str | None = None,
        set_alpha_to_one: bool | None = None,
        clip_sample: bool = False,
        clip_sample_range: float = 1.0,
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0,
    ) -> None:
        if (student := student_of(solver)) is not None:
            process = process or student["process"]
            self.register_to_config(process=process, prediction_type=prediction_type or student["predicts"])
        self.convention = convention_of(self.config)
        if student is not None:
            solver = student["made_for"]
        elif isinstance(solver, str):
            solver, named = placed(SOLVERS, solver, grid or "default")
            grid = grid if named == "default" else named
        self._solver, self._student, stored = solver_of(solver, self.process)
        self.register_to_config(
            solver=stored,
            grid=grid,
            process=process_to_json(process) if isinstance(process, Process) else process,
            trained_betas=None if trained_betas is None else torch.as_tensor(trained_betas).tolist(),
            use_flow_sigmas=self.convention.steps == "share",  # pipelines then leave the levels to the scheduler
        )
        self._clipping = clipping_of(self.config, self.convention)
        self._runs = Runs()
        self._made: dict[tuple[float, int], Schedule] = {}  # by eta and begin index; of set_timesteps alone at first
        self._begin_index: int | None = None
        self.num_inference_steps: int | None = None
        t = torch.linspace(self.process.t_max, self.process.t_min, self.convention.count, dtype=torch.float64)
        self.timesteps = self.convention.timestep(t).float()
        if self._student is not None:
            self._take(Schedule.of(own_of(self._student, self.process), self.convention, self._clipping), None)

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """A scheduler with another's config, a dict, or the path of its file or folder.

        What a file leaves out is as the class that it names has it. Options given here take the place of its own.

        Raises:
            ValueError: for an option that does not exist, and for a class that diffusers has not.
        """
        if isinstance(config, str | Path):
            config = read_json(scheduler_file(Path(config).expanduser()), "a scheduler")
        known = set(signature(cls.__init__).parameters) - {"self"}
        if not return_unused_kwargs and (unknown := sorted(set(kwargs) - known)):
            refuse_option(kwargs.get("solver"), unknown[0], kwargs[unknown[0]])
            pick({name: 0 for name in known}, unknown[0], "option")
        given = translated(completed({} if config is None else config, FewStepScheduler))
        if isinstance(stored := given.get("solver"), str):
            pick(SOLVERS, stored, "solver")  # a path comes from the caller, never from a file
        return super().from_config(given, return_unused_kwargs=return_unused_kwargs, **kwargs)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path | None = None,
        subfolder: str | None = None,
        return_unused_kwargs: bool = False,
        **kwargs: Any,
    ) -> Any:
        """A scheduler from the file or folder of a config, a pipeline's folder, or the name of one on the Hub."""
        local = Path(str(pretrained_model_name_or_path)).expanduser()
        if local.exists():
            pretrained_model_name_or_path, subfolder = str(scheduler_file(local, subfolder)), None
        return super().from_pretrained(pretrained_model_name_or_path, subfolder, return_unused_kwargs, **kwargs)

    @property
    def process(self) -> Any:
        """The process of the latents, for `fewstep.sample`."""
        return self.convention.process

    @property
    def table(self) -> Tableau:
        """The table of the run that `set_timesteps` and `set_begin_index` have set up."""
        return self._ready().table

    @property
    def init_noise_sigma(self) -> float:
        """(alpha^2 + sigma^2)^{1/2} at the first time step, diffusers' scale of the start of pure noise."""
        t = float(self._ready().times[0]) if self._made else self.process.t_max
        return float((self.process.alpha(t) ** 2 + self.process.sigma(t) ** 2) ** 0.5)

    @property
    def sigmas(self) -> Tensor:
        """The level at each time step and at the end, float32: sigma/alpha, sigma on EDM, t on flow."""
        schedule = self._ready()
        return self.convention.level(torch.cat([schedule.times, schedule.table.grid[-1:]])).float()

    @property
    def destinations(self) -> Tensor:
        """(nfe,) the time steps that the calls lead to, for networks that are told one (`fewstep.denoiser.base`)."""
        schedule = self._ready()
        to = torch.tensor(schedule.table.destinations, dtype=torch.float64)
        return schedule.convention.timestep(to).float().to(self.timesteps.device)

    @property
    def betas(self) -> Tensor:
        """(N,) the betas of a table of them, float32, for pipelines that look up what they tell the network."""
        return 1 - self.alphas_cumprod / torch.cat([torch.ones(1), self.alphas_cumprod[:-1]])

    @property
    def alphas_cumprod(self) -> Tensor:
        """(N,) alpha^2 at the process's whole time steps, float32; other processes have none."""
        if self.convention.steps != "index":
            raise AttributeError(f"{type(self).__name__} of {self.process} has no table of betas")
        t = torch.arange(1, self.convention.count + 1, dtype=torch.float64) / self.convention.count
        return (self.process.alpha(t) ** 2).float()

    @property
    def begin_index(self) -> int | None:
        """The index in `timesteps` that a run begins at."""
        return self._begin_index

    @property
    def step_index(self) -> int | None:
        """The index in `timesteps` of the next call of the run under way; None between runs."""
        run = self._runs.current
        return None if run is None or run.finished else (self._begin_index or 0) + run.done

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[float] | Tensor | None = None,
        sigmas: Sequence[float] | Tensor | None = None,
        mu: float | None = None,
        **others: Any,
    ) -> None:
        """Sets up runs; unfinished runs may only go on as they are.

        Levels 1, 1 - 1/n, ..., 1/n of a flow are those that pipelines make of num_inference_steps, and count as it.

        Args:
            num_inference_steps: the most network calls.
            device: where `timesteps` lives.
            timesteps: (n,) the network's time steps, used exactly; steps of the solver begin there.
            sigmas: levels, used exactly: (n + 1,) with the last one the end, or on flow (n,) before shift. With
                timesteps too (flow), these are what the network is told at the levels.
            mu: logarithm of a flow's shift (or, with time_shift_type="linear", the shift); no other shift reads it.
            others: what some scheduler of diffusers takes and none here.
        """
        refuse_others(others, "set_timesteps")
        table, convention = table_for(self.config, self.convention, self._solver, self._student,
                                      num_inference_steps, timesteps, sigmas, mu)  # fmt: skip
        warn_of_excess(table)
        self._take(Schedule.of(table, convention, self._clipping), device)

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Begins runs at a later time step, as image-to-image does, with the calls that are left and no others."""
        count = len(self._ready(begin=0).timesteps)
        if not 0 <= (begin_index or 0) < count:
            raise ValueError(
                f"got begin_index={begin_index} of {count} time steps, which leaves no call: give more steps or a "
                "higher strength"
            )
        self._ready(begin=begin_index or 0)  # what cannot begin there is refused
        self._begin_index = begin_index

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """What the network is called with: the state, but for EDM's preconditioning.

        Raises:
            ValueError: for a number, which pipelines scale that reckon with states x0 + sigma eps (latent upscale).
        """
        if sample.ndim == 0:
            raise ValueError(
                "got a number to scale, from a pipeline whose own sums need states x0 + sigma eps, where these are "
                "alpha x0 + sigma eps: leave it the scheduler it came with"
            )
        if self.convention.sigma_data is None:
            return sample
        return sample * float(self.convention.input_scale(self._time(timestep)))

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
        *,
        eta: float | None = 0.0,
        per_token_timesteps: Tensor | None = None,
        prev_timestep: Any = None,
        use_clipped_model_output: Any = None,
        **others: Any,
    ) -> FewStepSchedulerOutput | tuple[Tensor, Tensor]:
        """The state at the next time step.

        Args:
            model_output: (batch, ...) what the network returned; a second half of the channels (a learned variance) is
                left out.
            timestep: the time step the network was called with, an entry of `timesteps`.
            sample: (batch, ...) the state the network was called with, before `scale_model_input`.
            generator: of the noise of stochastic solvers; None draws it from a generator that the run's first state
                seeds, since some pipelines hand none over.
            return_dict: whether to return a `FewStepSchedulerOutput`, or the tuple of its two tensors.
            eta: unless 0 or None, the solver's option of that name for this run.
            per_token_timesteps: (batch, tokens) for states (batch, tokens, channels): tokens at other time steps stay,
                and model_output is the negative of what is predicted, as flow matching has it in diffusers.
            prev_timestep, use_clipped_model_output: pipelines give them; the table knows the one, and the other is
                always so here.
            others: what some scheduler of diffusers takes and none here.

        Raises:
            ValueError: for a time step that no run is at, as of two that pipelines change by turns; for an idle option.
        """
        refuse_others(others, "step")
        if self._begin_index is None and self._runs.fresh(float(timestep)):
            self._begin_at(float(timestep))
        run = self._runs.at(float(timestep), sample, self._ready(float(eta or 0.0)))
        if sample.ndim > 1 and model_output.shape[1] == 2 * sample.shape[1]:
            model_output = model_output[:, : sample.shape[1]]
        if per_token_timesteps is not None:
            model_output = -model_output
        new, x0 = run.step(model_output, sample, run.noises(sample, generator))
        if per_token_timesteps is not None:
            new = torch.where((per_token_timesteps == timestep)[..., None], new, sample)
        if not return_dict:
            return new, x0
        return FewStepSchedulerOutput(prev_sample=new, pred_original_sample=x0)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The states alpha x0 + sigma eps at (1,) or (batch,) time steps."""
        t = self._time(timesteps)
        shape = (-1, *[1] * (original_samples.ndim - 1))
        alpha, sigma = (f(t).to(original_samples).view(shape) for f in (self.process.alpha, self.process.sigma))
        return alpha * original_samples + sigma * noise.to(original_samples)

    def scale_noise(self, sample: Tensor, timestep: Any, noise: Tensor) -> Tensor:
        """`add_noise` in the order in which flow pipelines ask for it."""
        return self.add_noise(sample, noise, timestep)

    def fork(self) -> FewStepScheduler:
        """An independent scheduler with the same config and steps, for a run beside this one's."""
        twin = copy(self)
        twin._runs = Runs()
        return twin

    def __len__(self) -> int:
        return self.convention.count

    def _take(self, schedule: Schedule, device: Any) -> None:
        self._made = {(0.0, 0): schedule}
        self._begin_index = self._runs.current = None
        self.timesteps = schedule.timesteps.float().to(device)
        self.num_inference_steps = len(self.timesteps)

    def _ready(self, eta: float = 0.0, begin: int | None = None) -> Schedule:
        """The schedule that runs begin with; its solver's eta is another where a pipeline gives one."""
        begin = (self._begin_index if begin is None else begin) or 0
        if not self._made:
            raise ValueError("got a scheduler without time steps: call set_timesteps first")
        if (eta, begin) not in self._made:
            solver: Any = self._solver
            if eta and (self._student is not None or not hasattr(solver, "eta")):
                name = "a table" if solver is None else type(solver).__name__
                raise ValueError(f"got eta={eta:g} for {name}, which has no eta: leave it out, or choose ddim")
            solver = replace(solver, eta=eta) if eta else solver
            if begin:
                made = from_row(self._ready(eta, 0), solver, begin)
            else:
                whole = self._ready(0.0, 0)
                made = Schedule.of(solver.tabulate(self.process, whole.table.grid), whole.convention, self._clipping)
            self._made[eta, begin] = made
        return self._made[eta, begin]

    def _begin_at(self, timestep: float) -> None:
        """Begins at a later time step where a pipeline goes through the end of `timesteps` and does not say so.

        Of two calls at one time it is the second, with which a step begins.
        """
        steps = self._ready().timesteps.float().tolist()
        if timestep in steps and timestep != steps[0]:
            self.set_begin_index([i for i, t in enumerate(steps) if t == timestep][:2][-1])

    def _time(self, timestep: Any) -> Tensor:
        """Float64 times (n,) of time steps; those of the run are exact."""
        told = self._ready(begin=0) if self._made else self.convention
        return told.time(torch.as_tensor(timestep).detach().cpu().double().flatten())


FewStepScheduler.__module__ = "fewstep.interop.diffusers"  # the name that a saved pipeline imports it by
