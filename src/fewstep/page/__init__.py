"""The local page of `fewstep ui`: `layout` puts gradio's components in place, everything else knows nothing of gradio.

| file      | what it is                                                              |
|-----------|-------------------------------------------------------------------------|
| `choice`  | what a person chose, checked; the run it stands for, its Python, its record |
| `watch`   | a run that is watched call by call, and can be ended                     |
| `plane`   | runs in the plane, where the exact denoiser, density and field are known |
| `figures` | the plots                                                               |
| `html`    | pictures, text and errors as the page shows them                        |
| `guard`   | who may ask the page for what                                           |
"""

from __future__ import annotations

from fewstep.page.choice import Choice, Job
from fewstep.page.plane import Plane
from fewstep.page.watch import Finished, Frame, frames

__all__ = ["Choice", "Finished", "Frame", "Plane", "Job", "frames"]
