"""AMD's sensors on a stand-in for the amdsmi module."""

from __future__ import annotations

import itertools

import pytest

from wattline.collectors.energy import MeteredSensor, find_energy_sensor
from wattline.collectors.energy.amd import AMD_ERRORS, AmdDevice, amd_sources
from wattline.collectors.energy.errors import SensorForbiddenError, SensorUnsupportedError
from wattline.collectors.energy.nvml_probe import NvmlState
from wattline.errors import DeviceError, SensorError


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    for name in ("HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)


class AmdSmiException(Exception):  # noqa: N818 - the library's name
    def __init__(self, code: int) -> None:
        super().__init__(f"error {code}")
        self.code = code

    def get_error_code(self) -> int:
        return self.code


class Smi:
    """Two devices whose counters rise by 1000 units with every read."""

    AmdSmiException = AmdSmiException

    def __init__(self, name: str = "AMD Instinct MI300X") -> None:
        self.name = name
        self.open = 0
        self.counts = itertools.count(1_000_000, 1000)
        self.power = {"current_socket_power": 310, "average_socket_power": "N/A", "socket_power": 0xFFFF}
        self.errors: dict[str, int] = {}
        self.count_key = "energy_accumulator"
        self.silent: set[int] = set()

    def _enter(self, function: str) -> None:
        if function in self.errors:
            raise AmdSmiException(self.errors[function])

    def amdsmi_init(self) -> None:
        self._enter("init")
        self.open += 1

    def amdsmi_shut_down(self) -> None:
        self.open -= 1

    def amdsmi_get_processor_handles(self) -> list[int]:
        return [0, 1]

    def amdsmi_get_gpu_asic_info(self, handle: int) -> dict[str, str]:
        return {"market_name": self.name}

    def amdsmi_get_gpu_device_uuid(self, handle: int) -> str:
        return f"uuid-{handle}"

    def amdsmi_get_gpu_driver_info(self, handle: int) -> dict[str, str]:
        return {"driver_version": "6.10"}

    def amdsmi_get_gpu_vbios_info(self, handle: int) -> dict[str, str]:
        self._enter("vbios")
        return {"version": "022.040"}

    def amdsmi_get_energy_count(self, handle: int) -> dict[str, float]:
        self._enter("energy")
        count = 0 if handle in self.silent else next(self.counts)
        return {self.count_key: count, "counter_resolution": 15.3, "timestamp": 1}

    def amdsmi_get_power_info(self, handle: int) -> dict[str, object]:
        self._enter("power")
        return {"current_socket_power": 0} if handle in self.silent else self.power


def find(smi: Smi, bare_host, **options):
    bare_host.write("dev/kfd", "")
    return find_energy_sensor(
        "cuda", bare_host.root, nvml=lambda: NvmlState("no_library", "none"), amdsmi=smi,
        profiles=bare_host.path / "none.json", **options,
    )  # fmt: skip


def test_a_sensor_of_counter_and_power(bare_host):
    smi = Smi()
    with find(smi, bare_host, index=1) as sensor:
        assert isinstance(sensor, MeteredSensor)
        assert (sensor.name, sensor.scope, sensor.note) == ("amd_smi", "gpu", "")
        assert sensor.key == "uuid-1 | 6.10 | 022.040"
        counter, power = sensor.sources
        before, after = counter.read(), counter.read()
        assert after.value - before.value == pytest.approx(1000 * 15.3e-6)
        assert power.read().value == 310.0
        assert smi.open == 1
    assert smi.open == 0


def test_names_before_rocm_6(bare_host):
    smi = Smi()
    smi.count_key, smi.power = "power", {"average_socket_power": 222, "current_socket_power": "N/A"}
    counter, power = amd_sources(AmdDevice(binding=smi))[0]
    assert counter.read().value > 10
    assert power.read().value == 222.0


def test_a_card_of_two_dies(bare_host):
    smi = Smi("AMD Instinct MI250X")
    smi.silent = {1}
    with find(smi, bare_host) as sensor:
        assert sensor.scope == "card"
        assert "two devices" in sensor.note
        assert sensor.sources[0].flags == ("shared_card",)
    sensor = find(smi, bare_host, index=1)
    assert sensor.reason.code == "amd_smi_no_reading"
    assert "belongs to its first die" in sensor.reason.message
    assert smi.open == 0


def test_missing_readings_and_refusals(bare_host):
    smi = Smi()
    smi.errors = {"energy": 2, "vbios": 2}
    sources, missing = amd_sources(AmdDevice(binding=smi))
    assert [s.field for s in sources] == ["socket power"]
    assert "error 2" in missing["energy accumulator"]
    smi.errors = {"init": 10}
    assert find(smi, bare_host).reason.code == "amd_smi_forbidden"
    smi.errors = {}
    assert "sees 2" in find(smi, bare_host, index=2).reason.message


def test_typed_errors():
    smi = Smi()
    device = AmdDevice(binding=smi)
    for code, kind in AMD_ERRORS.items():
        smi.errors = {"energy": code}
        with pytest.raises(kind, match="energy counter"):
            device.call("amdsmi_get_energy_count", 0, doing="reading the energy counter")
    smi.errors = {"energy": 4711}
    with pytest.raises(SensorError):
        device.call("amdsmi_get_energy_count", 0)
    with pytest.raises(SensorUnsupportedError, match="lacks it"):
        device.call("amdsmi_no_such_function")
    assert AMD_ERRORS[10] is SensorForbiddenError
    assert AMD_ERRORS[12] is DeviceError


def test_nonsense_is_no_number():
    smi = Smi()
    counter, power = amd_sources(AmdDevice(binding=smi))[0]
    smi.count_key = "something else"
    with pytest.raises(SensorUnsupportedError, match="energy counter"):
        counter.read()
    smi.power = {"current_socket_power": "N/A"}
    with pytest.raises(SensorUnsupportedError, match="N/A"):
        power.read()


@pytest.mark.parametrize(
    ("variables", "uuid"),
    [
        ({}, "uuid-0"),
        ({"HIP_VISIBLE_DEVICES": "1,0"}, "uuid-1"),
        ({"CUDA_VISIBLE_DEVICES": "1"}, "uuid-1"),
        ({"HIP_VISIBLE_DEVICES": "0", "CUDA_VISIBLE_DEVICES": "1"}, "uuid-0"),
        ({"HIP_VISIBLE_DEVICES": "1", "ROCR_VISIBLE_DEVICES": "1,0"}, "uuid-0"),
    ],
)
def test_hidden_devices_shift_the_numbers(monkeypatch, variables, uuid):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert AmdDevice(0, binding=Smi()).uuid == uuid


def test_a_device_that_is_not_numbered_is_not_guessed(monkeypatch):
    smi = Smi()
    monkeypatch.setenv("ROCR_VISIBLE_DEVICES", "GPU-abc")
    with pytest.raises(SensorError, match="does not number it"):
        AmdDevice(0, binding=smi)
    assert smi.open == 0
