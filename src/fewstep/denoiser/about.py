"""What a denoiser says of itself that a solver may go by: what its network returns, guidance, the data's deviation."""

from __future__ import annotations

from typing import Any

from fewstep.denoiser.network import layers

__all__ = ["about"]


def about(denoiser: Any) -> dict[str, Any]:
    """`predicts`, `guidance`, and where they are known `std` and `error`: the options of `fewstep.Default`.

    Each is what the outermost wrapper says that knows it. A shift of the user's own counts as guidance of scale 2.
    """
    found: dict[str, Any] = {}
    for layer in layers(denoiser):
        found = _own(layer) | found
    return found


def _own(denoiser: Any) -> dict[str, Any]:
    """What one of the wrappers says."""
    predicts, scale, error = (getattr(denoiser, name, None) for name in ("predicts", "scale", "error"))
    own: dict[str, Any] = {}
    if hasattr(denoiser, "conditional"):
        own["guidance"] = float(scale) if isinstance(scale, int | float) else 2.0
    elif hasattr(denoiser, "base"):
        own["guidance"] = 2.0
    elif isinstance(predicts, str):
        own["predicts"] = predicts
    if predicts == "edm" and hasattr(denoiser, "sigma_data"):
        own["std"] = float(denoiser.sigma_data)
    if isinstance(error, float):
        own["error"] = error
    return own
