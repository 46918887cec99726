"""Real pictures as arrays, an npz file or a folder, read right or refused by name; and what spoils pictures."""

from __future__ import annotations

from fewstep.data.degrade import degradation
from fewstep.data.images import Images, read_images
from fewstep.data.undo import cold

__all__ = ["Images", "cold", "degradation", "read_images"]
