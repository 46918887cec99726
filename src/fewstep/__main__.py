"""Runs the command line as `python -m fewstep`."""

from __future__ import annotations

import sys

from fewstep.cli import main

sys.exit(main())
