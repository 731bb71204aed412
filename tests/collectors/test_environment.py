"""The snapshot: what a fake host says, what must never appear, and which differences count."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections import Counter
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattline.collectors import host
from wattline.collectors.energy.nvml_probe import NvmlGpu, NvmlState, probe_nvml
from wattline.collectors.environment import VARIABLES, differences, environment_id, picked, snapshot

NO_NVML = NvmlState("no_library", "libnvidia-ml.so.1 is not installed")
SECRET = "hunter2-ZXCVB"


def take(h, **options):
    options = {"variables": {}, "torch": False, "nvml": lambda: NO_NVML, **options}
    return snapshot(root=h.root, **options)


@pytest.fixture
def taken(fake_host):
    return take(fake_host)


def test_processor_by_hand(fake_host):
    facts = host.cpu_facts(fake_host.root)
    assert facts.model == "Imaginary Xeon 9999 @ 3.00GHz"
    assert (facts.logical, facts.cores, facts.sockets, facts.numa_nodes, facts.smt) == (4, 2, 1, 2, True)
    assert facts.caches == (
        host.Cache(1, "data", 49152, 2),
        host.Cache(1, "instruction", 32768, 2),
        host.Cache(2, "unified", 2 * 2**20, 2),
        host.Cache(3, "unified", 32 * 2**20, 1),
    )
    assert facts.cache_bytes(1) == 49152
    assert facts.cache_bytes(4) is None
    assert (facts.min_hz, facts.max_hz, facts.turbo) == (0.8e9, 4.2e9, True)
    assert (facts.governor, facts.driver, facts.hypervisor) == ("powersave", "intel_pstate", "")
    assert facts.features == ("amx_bf16", "avx2", "avx512f", "fma")


def test_mixed_governors_and_hypervisors(fake_host):
    fake_host.cpu("cpufreq/scaling_governor", ["performance", "powersave"])
    fake_host.cpuinfo(more="hypervisor")
    assert host.cpu_facts(fake_host.root).governor == "performance+powersave"
    assert host.cpu_facts(fake_host.root).hypervisor == "unnamed"
    fake_host.write("sys/class/dmi/id/sys_vendor", "QEMU")
    assert host.cpu_facts(fake_host.root).hypervisor == "kvm"


def test_arm_names_its_part(bare_host):
    entry = "processor\t: 0\nFeatures\t: fp asimd sve\nCPU implementer\t: 0x41\nCPU part\t: 0xd40"
    bare_host.write("proc/cpuinfo", entry)
    facts = host.cpu_facts(bare_host.root)
    assert (facts.model, facts.logical, facts.features) == ("Arm Neoverse-V1", 1, ("asimd", "sve"))


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("0-3", (0, 1, 2, 3)), ("0,2-3,9", (0, 2, 3, 9)), ("5", (5,)), ("", ()), (None, ()), ("0-x", ()), ("a", ())],
)
def test_cpu_lists(text, numbers):
    assert host.parse_cpu_list(text) == numbers


@pytest.mark.parametrize(("text", "size"), [("48K", 49152), ("2M", 2**21), ("7", 7), ("4X", None), (None, None)])
def test_sizes(text, size):
    assert host.parse_size(text) == size


def test_limits_are_the_tightest_on_the_way_up(fake_host):
    fake_host.cgroup_v2("/pod/box", limits={"cpu.max": "max 100000", "memory.max": str(8 * 2**30)})
    fake_host.write("sys/fs/cgroup/pod/cpu.max", "150000 100000")
    fake_host.write("sys/fs/cgroup/pod/memory.max", 4 * 2**30)
    limits = take(fake_host)["limits"]
    assert limits["cpu_quota"] == 1.5
    assert limits["memory_bytes"] == 4 * 2**30
    assert limits["allowed_cpus"] == 2


def test_unlimited_version_1_is_no_limit(fake_host):
    fake_host.write("proc/self/cgroup", "4:memory:/m\n2:cpu,cpuacct:/c")
    fake_host.write(
        "proc/self/mountinfo",
        "32 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
        "33 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct",
    )
    fake_host.write("sys/fs/cgroup/memory/m/memory.limit_in_bytes", 9223372036854771712)
    fake_host.write("sys/fs/cgroup/cpu/c/cpu.cfs_quota_us", -1)
    fake_host.write("sys/fs/cgroup/cpu/c/cpu.cfs_period_us", 100000)
    assert host.memory_limit(fake_host.root) is None
    assert host.cpu_quota(fake_host.root) is None
    fake_host.write("sys/fs/cgroup/cpu/c/cpu.cfs_quota_us", 50000)
    assert host.cpu_quota(fake_host.root) == 0.5


def test_containers(bare_host):
    assert host.container(bare_host.root) == ""
    bare_host.write("proc/self/cgroup", "0::/kubepods/besteffort/pod1")
    assert host.container(bare_host.root) == "kubepods"
    bare_host.write(".dockerenv", "")
    assert host.container(bare_host.root) == "docker"
    bare_host.write("run/.containerenv", "")
    assert host.container(bare_host.root) == "podman"


def test_snapshot_is_plain_json_with_all_parts(taken):
    assert json.loads(json.dumps(taken)).keys() == taken.keys()
    assert taken["memory"] == {"total_bytes": 64 * 2**30, "transparent_huge_pages": "madvise"}
    assert taken["os"]["distribution"] == "Imaginary Linux 1"
    assert taken["os"]["kernel"] == "6.1.0-imaginary"
    assert taken["load"] == {"one_minute": 0.5}
    assert taken["nvml"] == {"reason": NO_NVML.detail}
    assert taken["libraries"]["torch"]
    assert taken["torch"]["reason"]


def test_an_empty_host_still_gives_a_snapshot(bare_host):
    taken = take(bare_host)
    assert taken["limits"]["cpu_quota"] is None
    assert taken["load"]["one_minute"] is None
    assert environment_id(taken)


def test_gpus_and_driver_are_recorded(fake_host):
    state = NvmlState("ready", "driver 1, 1 GPU(s)", "550.1", (NvmlGpu("NVIDIA H200", 2**37, 700.0),))
    taken = take(fake_host, nvml=lambda: state)
    assert taken["nvml"]["driver"] == "550.1"
    assert taken["nvml"]["gpus"][0]["power_limit_w"] == 700.0
    assert environment_id(taken) != environment_id(take(fake_host))
    assert "nvml.gpus[0].name: NVIDIA H200 against absent" in differences(taken, take(fake_host))


def test_a_planted_secret_never_appears(fake_host, monkeypatch):
    planted = ("AWS_SECRET_ACCESS_KEY", "OMP_NUM_THREADS_TOKEN", "HF_TOKEN", "MY_OMP_NUM_THREADS", "PATH", "PYTHONPATH")
    for name in planted:
        monkeypatch.setenv(name, SECRET)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setenv("LD_PRELOAD", f"/home/{SECRET}/lib{SECRET}.so:/x/{SECRET}/libjemalloc.so.2")
    # Even in a variable that is on the list: a value of another form is a mistake, and may be private.
    monkeypatch.setenv("KMP_AFFINITY", f"https://user:{SECRET}@host/")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", f"{SECRET}\n{SECRET}")
    taken = snapshot(root=fake_host.root, torch=False, nvml=lambda: NO_NVML)
    text = json.dumps(taken)
    assert SECRET not in text
    assert not any(name in text for name in planted)
    assert taken["variables"]["OMP_NUM_THREADS"] == "2"
    assert "left out" in taken["variables"]["KMP_AFFINITY"]
    assert taken["preloaded"] == ["jemalloc"]


@given(st.dictionaries(st.text(min_size=1, max_size=30), st.text(max_size=40), max_size=8))
def test_only_listed_names_are_picked(variables):
    assert set(picked(variables)) <= set(VARIABLES) & set(variables)


@pytest.mark.parametrize(
    "value", ["0,1", "granularity=fine,compact,1,0", "{0:4},{4:4}", "max_split_size_mb:128", ":4096:8", "0-3", ""]
)
def test_usual_values_are_kept(value):
    assert picked({"KMP_AFFINITY": value}) == {"KMP_AFFINITY": value}


def test_listed_names_hold_no_credentials():
    assert not [n for n in VARIABLES if any(word in n for word in ("TOKEN", "KEY", "SECRET", "PASS", "USER", "HOME"))]
    assert len(set(VARIABLES)) == len(VARIABLES)


def change(taken, path, value):
    changed = copy.deepcopy(taken)
    part = changed
    for name in path[:-1]:
        part = part[name]
    part[path[-1]] = value
    return changed


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("hostname",), "elsewhere"),
        (("taken_at",), "2001-01-01T00:00:00+00:00"),
        (("load", "one_minute"), 99.0),
        (("other_libraries", "pandas"), "0.0"),
        (("nvml", "reason"), "said in other words"),
        (("memory", "total_bytes"), 64 * 2**30 - 40960),
        (("torch", "cuda"), None),
    ],
)
def test_what_does_not_count(taken, path, value):
    changed = change(taken, path, value)
    assert environment_id(changed) == environment_id(taken)
    assert differences(taken, changed) == []


@pytest.mark.parametrize(
    ("path", "value", "line"),
    [
        (("wattline",), "0.0.0", "wattline: "),
        (("libraries", "torch"), "9.9", "libraries.torch: "),
        (("torch", "threads"), 64, "torch.threads: absent against 64"),
        (("cpu", "governor"), "performance", "cpu.governor: powersave against performance"),
        (("cpu", "features"), ["avx2"], "cpu.features: amx_bf16 avx2 avx512f fma against avx2"),
        (("memory", "total_bytes"), 32 * 2**30, "memory.total_bytes: "),
        (("limits", "cpu_quota"), 1.5, "limits.cpu_quota: absent against 1.5"),
        (("variables", "OMP_NUM_THREADS"), "1", "variables.OMP_NUM_THREADS: absent against 1"),
        (("os", "kernel"), "7.0", "os.kernel: 6.1.0-imaginary against 7.0"),
    ],
)
def test_what_counts(taken, path, value, line):
    changed = change(taken, path, value)
    assert environment_id(changed) != environment_id(taken)
    (found,) = differences(taken, changed)
    assert found.startswith(line)


def test_id_survives_a_file(taken):
    again = json.loads(json.dumps(taken))
    assert environment_id(again) == environment_id(taken)
    assert differences(again, taken) == []
    assert len(environment_id(taken)) == 12


def test_real_machine():
    taken = snapshot()
    assert json.loads(json.dumps(taken, allow_nan=False))
    assert taken["torch"]["version"]
    assert taken["torch"]["threads"] >= 1
    assert taken["cpu"]["logical"] >= 1
    assert taken["memory"]["total_bytes"] > 2**28
    assert environment_id(snapshot()) == environment_id(taken)


def test_importing_it_loads_no_torch():
    code = "import sys, wattline.collectors.environment; print({'torch', 'pandas', 'pynvml'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


class NVMLError(Exception):
    """As pynvml's: one subclass per error of the library."""


LIBRARY_NOT_FOUND, DRIVER_NOT_LOADED, NOT_SUPPORTED = (
    type(f"NVMLError_{name}", (NVMLError,), {}) for name in ("LibraryNotFound", "DriverNotLoaded", "NotSupported")
)


def fake_nvml(*, init=None, count=None, gpus=1):
    """As much of `pynvml` as is asked here; ``init`` and ``count`` are errors to raise."""

    def raising(error, value):
        if error:
            raise error
        return value

    calls = Counter()
    fake = SimpleNamespace(
        NVMLError=NVMLError,
        calls=calls,
        nvmlInit=lambda: raising(init, None) or calls.update(["open"]),
        nvmlShutdown=lambda: calls.update(["close"]),
        nvmlSystemGetDriverVersion=lambda: b"550.54",
        nvmlDeviceGetCount=lambda: raising(count, gpus),
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetName=lambda handle: "NVIDIA Imaginary",
        nvmlDeviceGetMemoryInfo=lambda handle: raising(NOT_SUPPORTED(), None),
        nvmlDeviceGetEnforcedPowerLimit=lambda handle: 350_000,
    )
    if init:
        fake.nvmlShutdown = lambda: pytest.fail("shut down without having been opened")
    return fake


def test_nvml_answers():
    fake = fake_nvml()
    state = probe_nvml(fake)
    assert state == NvmlState(
        "ready", "driver 550.54, 1 GPU(s)", "550.54", (NvmlGpu("NVIDIA Imaginary", None, 350.0),)
    )
    assert state.ready
    assert fake.calls == {"open": 1, "close": 1}


@pytest.mark.parametrize(
    ("fake", "code"),
    [
        (fake_nvml(init=LIBRARY_NOT_FOUND()), "no_library"),
        (fake_nvml(init=DRIVER_NOT_LOADED()), "no_driver"),
        (fake_nvml(init=NVMLError("odd")), "failed"),
        (fake_nvml(count=NVMLError("lost")), "failed"),
        (fake_nvml(gpus=0), "no_gpu"),
    ],
)
def test_nvml_failures_become_states(fake, code):
    state = probe_nvml(fake)
    assert state.code == code
    assert state.detail
    assert not state.ready
    assert fake.calls["open"] == fake.calls["close"]
