"""What a denoiser says of itself that a solver may go by: what its network returns, guidance, the data's deviation."""

from __future__ import annotations

from typing import Any

from fewstep.denoiser.base import Denoiser, as_denoiser, parts
from fewstep.denoiser.network import Wrapped

__all__ = ["about"]


def about(denoiser: Any) -> dict[str, Any]:
    """`predicts`, `guidance`, and where they are known `std` and `error`: the options of `fewstep.Default`.

    Each is what the outermost wrapper says that knows it. A shift of the user's own counts as guidance of scale 2.
    """
    found, layer = {}, as_denoiser(denoiser)
    while True:
        found = _own(layer) | found
        first, *others = (*parts(layer), None)
        if first is None or (len(others) > 1 and layer.guidance is None):  # of several, whose word counts is not known
            return found
        layer = first


def _own(denoiser: Denoiser) -> dict[str, Any]:
    """What one of the wrappers says."""
    own: dict[str, Any] = {}
    if denoiser.guidance is not None:
        own["guidance"] = float(denoiser.guidance)
    elif isinstance(denoiser, Wrapped) or denoiser.predicts != "data":
        own["predicts"] = denoiser.predicts
    if isinstance(denoiser, Wrapped):
        own |= {"error": denoiser.error} | ({"std": denoiser.sigma_data} if denoiser.predicts == "edm" else {})
    return own
