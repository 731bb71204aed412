"""Reason: why something has no figure. A module of its own, so that a listing need not load records."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Reason:
    """Why a case has no figure: a code for programs, a sentence for people."""

    code: str
    message: str
