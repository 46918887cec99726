"""Real pictures as arrays: an npz file or a folder, read right or refused by name."""

from __future__ import annotations

from fewstep.data.images import Images, read_images

__all__ = ["Images", "read_images"]
