"""The door to diffusers: any table as the scheduler of a pipeline, and its pipelines as denoisers.

from fewstep.interop.diffusers import FewStepScheduler
pipe.scheduler = FewStepScheduler.from_config(pipe.scheduler.config, solver="unipc-3")
"""

from __future__ import annotations

from fewstep.files import extra

extra("diffusers", "diffusers", "the scheduler for diffusers pipelines")

# diffusers loads a pipeline's scheduler from a module that has this name too.
from diffusers.schedulers.scheduling_utils import SchedulerMixin as SchedulerMixin  # noqa: E402

from fewstep.interop.diffusers.convention import Convention, convention_of  # noqa: E402
from fewstep.interop.diffusers.folder import DiffusersModel, load_folder  # noqa: E402
from fewstep.interop.diffusers.run import FewStepSchedulerOutput  # noqa: E402
from fewstep.interop.diffusers.scheduler import FewStepScheduler  # noqa: E402

__all__ = ["Convention", "DiffusersModel", "FewStepScheduler", "FewStepSchedulerOutput", "convention_of", "load_folder"]
