"""A load for calibration: matrix products back to back on a device, switched within about a millisecond."""

from __future__ import annotations

import threading
import time
from typing import Any, Self

from wattline.collectors.device import Device
from wattline.errors import DeviceError

CALL_S = 1e-3
"""Length of one product that is aimed at: switching waits for the last one."""

_SIZES = (128, 256, 512, 1024, 2048, 4096, 8192)
_PATIENCE_S = 30.0


class MatmulLoad:
    """Products of square matrices in a thread of their own; see :class:`wattline.collectors.energy.drive.Load`.

    The size is chosen so that one product takes about :data:`CALL_S`. No more than two are queued, so that the load
    ends when it is told to. On a CPU one core is left to whoever reads the sensor, where there are several.

    Args:
        device: what to load.

    Attributes:
        call_s: seconds of one product, at the start.

    Raises:
        DeviceError: the device cannot multiply.
    """

    partial = True

    def __init__(self, device: Device) -> None:
        import torch

        self._torch, self._device = torch, device
        self._threads = torch.get_num_threads()
        if device.kind == "cpu" and self._threads > 1:
            torch.set_num_threads(self._threads - 1)
        self._lock = threading.Condition()
        self._level = self._in_effect = 0.0
        self._effect_s = time.perf_counter()
        self._closing = False
        self._failure: Exception | None = None
        try:
            self._a, self._b, self._out, self.call_s = self._choose()
        except RuntimeError as error:
            torch.set_num_threads(self._threads)
            raise DeviceError(
                "the load for the calibration cannot run", why=str(error).splitlines()[0],
                todo="free the device's memory: end what else runs on it, then calibrate again",
            ) from error  # fmt: skip
        self._thread = threading.Thread(target=self._run, name="wattline-load", daemon=True)
        self._thread.start()

    def switch(self, level: float) -> float:
        """See :meth:`Load.switch`; returns when the device follows.

        Raises:
            DeviceError: the products failed, or the device hangs.
        """
        with self._lock:
            self._level = level
            self._lock.notify_all()
            done = self._lock.wait_for(
                lambda: self._failure is not None or self._in_effect == level, timeout=_PATIENCE_S
            )
            if self._failure is not None:
                raise DeviceError("the load failed", why=str(self._failure).splitlines()[0]) from self._failure
            if not done:
                raise DeviceError(
                    "the load does not end", why=f"the device did not answer in {_PATIENCE_S:.0f} s",
                    todo="end what else runs on the device, then calibrate again",
                )  # fmt: skip
            return self._effect_s

    def close(self) -> None:
        """Switch off and end the thread; it may be called twice."""
        with self._lock:
            self._closing, self._level = True, 0.0
            self._lock.notify_all()
        self._thread.join(_PATIENCE_S)
        self._torch.set_num_threads(self._threads)
        self._a = self._b = self._out = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _choose(self) -> tuple[Any, Any, Any, float]:
        """Operands, and the time of one product."""
        torch = self._torch
        # What GPUs draw most power with; CPUs without matrix units take seconds over a product in 16 bits.
        dtype = torch.float32 if self._device.kind == "cpu" else torch.float16
        found: tuple[Any, Any, Any, float] | None = None
        for size in _SIZES:
            a = torch.rand(size, size, device=self._device.torch_device).sub_(0.5).to(dtype)
            b = torch.rand(size, size, device=self._device.torch_device).sub_(0.5).to(dtype)
            out = torch.empty(size, size, device=self._device.torch_device, dtype=dtype)
            took = float("inf")
            for _ in range(3):  # the first one sets the library up
                begin = time.perf_counter()
                torch.mm(a, b, out=out)
                self._device.synchronize()
                took = min(took, time.perf_counter() - begin)
            if found is None or took < 2 * CALL_S:
                found = a, b, out, took
            if took > CALL_S:
                break
        assert found is not None
        return found

    def _run(self) -> None:
        try:
            while True:
                with self._lock:
                    self._lock.wait_for(lambda: self._closing or self._level > 0 or self._in_effect != self._level)
                    if self._closing:
                        return
                    level = self._level
                self._turn(level)
        except Exception as error:  # noqa: BLE001 - not swallowed: a thread cannot raise, so that switch() does
            with self._lock:
                self._failure = error
                self._lock.notify_all()

    def _turn(self, level: float) -> None:
        """One or two products and the pause that the level asks for; tells when a new level takes effect."""
        begin = time.perf_counter()
        if level > 0:
            self._product()
            if level == 1 and self._in_effect == level:
                self._product()
        if self._in_effect != level:
            if level == 0:
                self._device.synchronize()
            with self._lock:
                self._in_effect = level
                self._effect_s = begin if level > 0 else time.perf_counter()
                self._lock.notify_all()
        if level > 0:
            self._device.synchronize()
        if 0 < level < 1:
            time.sleep((time.perf_counter() - begin) * (1 - level) / level)

    def _product(self) -> None:
        self._torch.mm(self._a, self._b, out=self._out)
