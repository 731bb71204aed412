"""Reservations about a reading of energy and causes of its error: the words of records, kept with the vocabulary."""

from wattline.energy_terms import BUDGET as BUDGET  # noqa: PLC0414 - collectors speak of them as theirs
from wattline.energy_terms import ENERGY_FLAGS as ENERGY_FLAGS  # noqa: PLC0414
