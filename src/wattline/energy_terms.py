"""Reservations about a reading of energy, by code, and the error budget by cause."""

from __future__ import annotations

ENERGY_FLAGS: dict[str, str] = {
    "low_confidence": "the window held fewer than 20 of the sensor's periods",
    "disagreement": "counter and integrated power differ by more than 3 %",
    "unchecked": "the second reading of the same scope was not good enough to compare with",
    "fallback": "a better source of this device failed meanwhile",
    "averaged_sensor": "the power is a moving average of a second: right for a steady load only",
    "unchanged": "the power reading never changed: a very steady load, or a sensor that hangs",
    "power_drift": "the power changed by more than 3 % between the halves of the window",
    "strobed": "the sensor looks for a part of each period only, in step with the calls: it may never see the rest",
    "counter_reset": "the counter fell back meanwhile: only the longest part without a break was used",
    "stalled": "the counter stood still for a while, though its readings went on",
    "read_errors": "some readings failed; those between them were used",
    "module_scope": "the reading covers the whole module (GPU, CPU and memory), not the GPU alone",
    "shared_card": "the reading covers a card of several devices",
    "mig": "the GPU is split (MIG): the reading covers all of its instances",
    "lost_device": "the device was lost before the window ended",
    "uncalibrated": "period and window are priors from public measurements, not found on this machine",
}
"""What may be said against a reading of energy (``Energy.flags``)."""

BUDGET: dict[str, str] = {
    "quantisation": "steps of the sensor in time and value, and the gaps between polls",
    "trial": "spread of the readings within the window",
    "drift": "change of the power during the window",
    "gaps": "the share of a load of several ranks in which they waited for each other between batches; upwards only",
    "pace": "unevenness of a call's time over a load of several ranks; for information; part of what overlap saves",
    "unseen": "the share of each period that a sensor in step with the calls never looks at",
    "gain": "systematic error of the sensor, proportional; software cannot remove it",
    "cross_check": "difference from the second source; for information, not part of the interval",
}
"""Causes in ``Energy.budget``: relative half-widths of 95 % intervals."""
