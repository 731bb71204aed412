"""The energy sensor of a device: the real one where it can be read, else the true reason why there is none."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from wattline.collectors import host
from wattline.collectors.energy import amd, rapl
from wattline.collectors.energy import nvml as _nvml
from wattline.collectors.energy import nvml_probe as _probe
from wattline.collectors.energy.common import EnergySensor, NoEnergySensor
from wattline.collectors.energy.errors import SensorForbiddenError
from wattline.collectors.energy.external import corrected
from wattline.collectors.energy.profiles import device_key, load_profile
from wattline.collectors.energy.rapl import POWERCAP as POWERCAP  # noqa: PLC0414 - part of what this module offers
from wattline.collectors.energy.rapl import RAPL_ENERGY as RAPL_ENERGY  # noqa: PLC0414
from wattline.collectors.energy.sensor import MeteredSensor
from wattline.collectors.energy.sources import Source
from wattline.errors import DeviceError, StorageError, WattlineError
from wattline.record import Reason

_MIG = "the GPU is split (MIG): its sensor covers all instances, and what others run on them is counted too"
_MODULE = "the sensor covers the module: GPU, CPU and memory"
_CARD = "the sensor covers the card, which shows two devices"


def find_energy_sensor(
    device_kind: str,
    root: str = "/",
    *,
    index: int = 0,
    uuid: str = "",
    nvml: Callable[[], _probe.NvmlState] = _probe.probe_nvml,
    binding: Any = None,
    amdsmi: Any = None,
    profiles: Path | None = None,
) -> EnergySensor:
    """The energy sensor of a device, or the null object with the true reason why there is none. Never raises.

    Args:
        device_kind: ``"cpu"``, or an accelerator's: ``"gpu"``, ``"cuda"`` (CUDA and ROCm alike), ``"xpu"`` ...
        root: of the file tree that holds ``sys`` and ``dev``.
        index: of the accelerator, as CUDA counts (``CUDA_VISIBLE_DEVICES`` is honoured).
        uuid: of the accelerator, where the caller knows it; then the index does not matter.
        nvml: asks NVIDIA's library whether it answers; for tests.
        binding: a module like ``pynvml``, for tests.
        amdsmi: a module like ``amdsmi``, for tests.
        profiles: file of calibrated profiles; the user's where not given.
    """
    if device_kind == "cpu":
        return _rapl(root, profiles)
    if device_kind in ("gpu", "cuda"):
        state = nvml()
        if state.ready:
            return _nvidia(index, uuid, binding, profiles)
        # /dev/kfd is the compute interface of AMD's kernel driver.
        if os.path.exists(os.path.join(root, "dev/kfd")):
            return _amd(index, amdsmi, profiles)
        return NoEnergySensor(
            Reason(f"nvml_{state.code}", state.detail),
            name="nvml",
            scope="gpu",
            source="NVML total energy counter",
            remedy=_probe.REMEDIES[state.code],
        )
    message = f"no energy sensor is known for {device_kind} devices"
    return NoEnergySensor(
        Reason("no_sensor_known", message), name=device_kind, remedy="none in this version; times are measured as ever"
    )


def _nvidia(index: int, uuid: str, binding: Any, profiles: Path | None) -> EnergySensor:
    source = "NVML total energy counter"
    try:
        device = _nvml.NvmlDevice(index, uuid, binding=binding)
        found, missing = _nvml.nvml_sources(device)
    except WattlineError as error:
        return _failed("nvml", "gpu", source, error)
    if not found:
        device.close()
        return _silent("nvml", "gpu", source, missing)
    note = ". ".join([_MIG] * device.mig + [_MODULE] * device.module)
    key = device_key(device.uuid, device.driver, device.firmware)
    return _metered("nvml", _nvml.metered(found), key, note, profiles)


def _amd(index: int, binding: Any, profiles: Path | None) -> EnergySensor:
    source = "AMD SMI energy accumulator"
    try:
        device = amd.AmdDevice(index, binding=binding)
    except WattlineError as error:
        return _failed("amd_smi", "gpu", source, error)
    try:
        found, missing = amd.amd_sources(device)
    except WattlineError as error:
        device.close()
        return _failed("amd_smi", "gpu", source, error)
    if not found:
        device.close()
        return _silent("amd_smi", "gpu", source, missing)
    key = device_key(device.uuid, device.driver, device.firmware)
    return _metered("amd_smi", found, key, _CARD if device.dual_die else "", profiles)


def _rapl(root: str, profiles: Path | None) -> EnergySensor:
    label = f"RAPL, /{RAPL_ENERGY}"
    reason, remedy = rapl.probe(root)
    if reason is not None:
        return NoEnergySensor(reason, name="rapl", scope="package", source=label, remedy=remedy)
    try:
        found = rapl.rapl_sources(root)
    except WattlineError as error:
        return _failed("rapl", "package", label, error)
    # The platform's counter is another scope: it can neither check nor replace the packages'.
    key = device_key(host.cpu_facts(root).model or "cpu", host.read_text(root, "proc/sys/kernel/osrelease") or "", "")
    return _metered("rapl", found[:1], key, "", profiles)


def _metered(name: str, sources: Sequence[Source], key: str, note: str, profiles: Path | None) -> MeteredSensor:
    """A sensor of sources with their calibrated profiles, where there are some."""
    try:
        for source in sources:
            known = load_profile(key, source.field, profiles)
            if known is not None:
                source.profile = replace(known, resolution=known.resolution or source.profile.resolution)
    except StorageError as error:
        # A damaged file must not stop a run: priors are used, every figure says so by a flag, and the doctor why.
        note = ". ".join(part for part in (note, f"the calibration is not used: {error}") if part)
    return MeteredSensor(name, [corrected(source) for source in sources], key=key, note=note)


def _failed(name: str, scope: str, source: str, error: WattlineError) -> NoEnergySensor:
    code = "forbidden" if isinstance(error, SensorForbiddenError) else "failed"
    code = "lost" if isinstance(error, DeviceError) else code
    message = ": ".join(part for part in (error.what, error.why) if part)
    remedy = error.todo or "see `wattline doctor`"
    return NoEnergySensor(Reason(f"{name}_{code}", message), name=name, scope=scope, source=source, remedy=remedy)


def _silent(name: str, scope: str, source: str, missing: dict[str, str]) -> NoEnergySensor:
    said = "; ".join(f"{field}: {why}" for field, why in missing.items())
    return NoEnergySensor(
        Reason(f"{name}_no_reading", f"this device has no reading of power or energy ({said})"),
        name=name,
        scope=scope,
        source=source,
        remedy="a newer driver may help; consumer and virtual devices often have none",
    )
