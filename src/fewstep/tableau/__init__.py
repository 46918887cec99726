"""Tables: a sampler with process, solver and grid fixed, as numbers: checked, printed, saved, rewritten."""

from __future__ import annotations

from fewstep.tableau.form import Form, Symbol
from fewstep.tableau.made_for import MadeFor
from fewstep.tableau.row import NoiseInterval, Row
from fewstep.tableau.tableau import Tableau
from fewstep.tableau.writer import Through, Writer

__all__ = ["Form", "MadeFor", "NoiseInterval", "Row", "Symbol", "Tableau", "Through", "Writer"]
