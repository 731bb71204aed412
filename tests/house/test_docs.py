"""The documentation is true: its Python runs, its links lead somewhere, and its lists are complete."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from wattline.case import FILLS, REGIMES, Case
from wattline.device import Ceilings, DeviceSpec
from wattline.formats import BENCH_FORMATS
from wattline.record import FLAGS, STATUSES, Check, Energy, Measurement, Record
from wattline.run import PlannedCase, RunWriter
from wattline.stats import summarize
from wattline.suites.settings import MeasureSettings
from wattline.suites.workload import Machine
from wattline.work import bound
from wattline.workmodels import work_of

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
WITH_PYTHON = [page for page in PAGES if BLOCK.search(page.read_text(encoding="utf-8"))]


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


DEVICE = DeviceSpec(
    id="example-cpu",
    name="Example CPU",
    vendor="example",
    kind="cpu",
    memory_bytes=16e9,
    l2_bytes=16e6,
    sm_count=2,
    measured=Ceilings({"fp32": 1.8e11, "bf16": 3.0e11, "fp64": 9e10}, 2.5e10, 2e-6),
)


def records() -> Iterator[Record]:
    """Products of many shapes at 60 to 90 % of the bound, on a machine that the work model fits well."""
    rng = np.random.default_rng(7)
    sequence = 0
    for dtype in ("fp32", "bf16", "fp64"):
        for m in (16, 64, 128, 256, 512, 1024):
            for n in (128, 384, 1024):
                for k in (128, 512, 1536):
                    params = {"batch": 1, "m": m, "n": n, "k": k, "dtype": dtype, "layout": "nn"}
                    params |= {"out_dtype": "same", "acc": "default"}
                    case = Case("gemm.dense", "torch", params)
                    work = work_of(case.op, params)
                    limit = bound(work, DEVICE)
                    watts = 90.0 + 15.0 * k / (k + 400)
                    centre = limit.time_s / (0.6 + 0.3 * k / (k + 400)) + 3e-6
                    joules = watts * centre
                    samples = centre * (1 + 0.004 * rng.standard_normal(25))
                    measurement = Measurement(
                        tuple(map(float, samples)), 4, summarize(samples), "precise", warmup_calls=9, warmup_s=0.1,
                        warmup_stop="settled", first_call_s=3 * centre, rotations=4, timer="perf_counter_ns",
                        timed_s=float(4 * samples.sum()), check=Check(2e-7, 1e-5, True, "full"),
                        energy=Energy(watts, joules, 0.98 * joules, 1.02 * joules, "example", "device"),
                    )  # fmt: skip
                    yield Record(
                        case, "ok", DEVICE.id, measurement=measurement, work=work, bound_s=limit.time_s,
                        bound_by=limit.by, seed=sequence, started_at="2026-01-02T03:04:05Z", wall_s=0.3,
                        sequence=sequence,
                    )  # fmt: skip
                    sequence += 1


@pytest.fixture(scope="session")
def example_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a fitted predictor, as `wattline bench` leaves it."""
    from wattline.predictors.datasets import fit_run

    folder = tmp_path_factory.mktemp("runs") / "example"
    made = list(records())
    manifest = {
        "device": DEVICE.to_dict(), "environment": {}, "environment_id": "0" * 16, "state": "complete",
        "plan": {"preset": "standard", "arguments": {}, "seed": 0, "settings": {}, "budget_s": None, "command": ""},
        "totals": {"planned": len(made), "measured": len(made), "by_status": {"ok": len(made)}},
    }  # fmt: skip
    with RunWriter.create(folder, manifest, [PlannedCase(record.case) for record in made]) as writer:
        for record in made:
            writer.append(record)
    fit_run(folder)
    return folder


@pytest.mark.parametrize("page", WITH_PYTHON, ids=named)
def test_the_python_of_a_page_runs(page: Path, example_run: Path, tmp_path: Path) -> None:
    text = page.read_text(encoding="utf-8")
    # One namespace for a page; empty lines before each block, so that a traceback names the line of the page.
    script = f"names = {{'__name__': '__main__', 'run': {str(example_run)!r}}}\n"
    for block in BLOCK.finditer(text):
        padded = "\n" * text.count("\n", 0, block.start(1)) + block.group(1)
        script += f"exec(compile({padded!r}, {str(page)!r}, 'exec'), names)\n"
    done = subprocess.run(
        [sys.executable, "-"], input=script, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def test_there_is_python_to_run() -> None:
    assert {
        "README.md", "docs/method.md", "docs/workloads.md", "docs/workloads/gemm.md", "docs/workloads/attention.md",
        "docs/extending.md", "docs/importing.md",
    } <= set(map(named, WITH_PYTHON))  # fmt: skip


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_inside_the_project_lead_somewhere(page: Path) -> None:
    broken = []
    for target in LINK.findall(CODE.sub("", page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        if not path.exists() or (anchor and anchor not in anchors(path)):
            broken.append(target)
    assert not broken, f"{named(page)} links to what is not there"


def anchors(page: Path) -> set[str]:
    """The anchors that a forge makes of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", CODE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("docs/method.md", FLAGS),
        ("docs/method.md", STATUSES),
        ("docs/method.md", REGIMES),
        ("docs/method.md", FILLS),
        ("docs/workloads.md", BENCH_FORMATS),
    ],
    ids=["flags", "statuses", "regimes", "fills", "formats"],
)
def test_lists_in_the_documentation_are_complete(page: str, names: tuple[str, ...] | dict[str, str]) -> None:
    text = text_of(page)
    assert [name for name in names if f"`{name}`" not in text] == []


def test_every_field_of_a_measurement_is_documented() -> None:
    text = text_of("docs/method.md")
    assert [name for name in Measurement.__dataclass_fields__ if f"`{name}`" not in text] == []


def test_the_defaults_of_the_settings_are_documented() -> None:
    listed = dict(re.findall(r"^\| `(\w+)` \| `?([\w.]+)`? \| [^|]+ \|$", text_of("docs/method.md"), re.MULTILINE))
    for name, value in MeasureSettings().to_dict().items():
        shown = listed[name]
        if value is None:
            assert shown == "none"
            continue
        assert shown == str(value).lower() or float(shown) == value, name


def test_the_example_of_a_preset_makes_a_plan(tmp_path: Path) -> None:
    from wattline.suites.plan import make_plan

    example = re.search(r"^```toml\n(extends.*?)^```", text_of("docs/workloads.md"), re.MULTILINE | re.DOTALL)
    assert example
    path = tmp_path / "mine.toml"
    path.write_text(example.group(1), encoding="utf-8")
    machine = Machine(kind="cpu", torch_version=(2, 13), memory_bytes=16 * 2**30, cache_bytes=32 * 2**20)
    plan = make_plan(path, machine=machine)
    # 10 sizes, 2 formats, 2 pairs of n and k, 2 regimes; the condition keeps all; 4 of them are measured twice.
    assert len(plan.cases) == 10 * 2 * 2 * 2 + 4
    assert (plan.budget_s, plan.settings.precision) == (120.0, 0.02)
    assert make_plan(path, machine=replace(machine, kind="cuda")).budget_s == 300.0


def test_every_parameter_and_shape_source_of_the_operation_is_documented() -> None:
    from wattline.suites.registry import get

    text, workload = text_of("docs/workloads.md"), get("gemm.dense").workload
    assert [name for name in (*workload.params, *workload.shape_sources) if f"`{name}`" not in text] == []


def built_in() -> list[str]:
    from wattline.suites.registry import entries

    return [op for op, entry in entries().items() if type(entry.workload).__module__.startswith("wattline.")]


def names_of(op: str) -> set[str]:
    """How the pages may call an operation: by its name, or by that of a family whose members differ in a word."""
    return {op, f"{op.split('.', maxsplit=1)[0]}.*"}


def test_the_index_of_workloads_lists_every_operation() -> None:
    listed = re.findall(r"^\| \[([\w.*]+)\]\(", text_of("docs/workloads.md"), re.MULTILINE)
    assert len(listed) == len(set(listed))
    assert [op for op in built_in() if not names_of(op) & set(listed)] == []


def test_every_operation_has_a_section_that_names_its_parameters_and_implementations() -> None:
    from wattline.suites.registry import get, members

    texts: dict[str, str] = {}
    for page in [ROOT / "docs/workloads.md", *ROOT.glob("docs/workloads/*.md")]:
        parts = re.split(r"^## (.+)\n", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
        for heading, text in zip(parts[1::2], parts[2::2], strict=True):
            for op in heading.split(", "):
                texts[op] = texts.get(op, "") + text
    shared = {"rows", "cols", "dtype"}  # of row-wise operations: said once, under the first of them
    missing = []
    for op in set(built_in()) - {*members("collectives")}:
        entry, text = get(op), "".join(texts.get(name, "") for name in names_of(op))
        names = {*entry.implementations, *entry.workload.params}
        names -= shared if "rows" in entry.workload.params and op != "softmax.rows" else set()
        missing += [f"{op}: {name}" for name in sorted(names) if f"`{name}`" not in text]
    assert missing == []


def test_every_preset_is_documented() -> None:
    from wattline.suites.presets import list_presets

    text = text_of("docs/workloads.md")
    assert list_presets()
    assert [name for name in list_presets() if f"| `{name}` |" not in text] == []


def test_every_command_is_in_the_readme_and_no_other() -> None:
    from wattline.cli.lazy import COMMANDS

    listed = re.findall(r"^\| `wattline (\w+)", text_of("README.md"), re.MULTILINE)
    assert sorted(listed) == sorted(COMMANDS)


def test_the_table_of_rooms_names_folders_that_exist() -> None:
    rooms = re.findall(r"^\| `([\w/]+)/` \|", text_of("CONTRIBUTING.md"), re.MULTILINE)
    assert len(rooms) >= 7
    assert [room for room in rooms if not (ROOT / room).is_dir()] == []


def test_the_changelog_knows_the_version() -> None:
    from wattline import __version__

    assert __version__ in text_of("CHANGELOG.md")


def test_the_commands_of_the_workflow_are_understood(tmp_path: Path, example_run: Path) -> None:
    """Every `wattline compare` of the page on comparing parses, and does what it says on a real folder."""
    import shlex

    text = text_of("docs/comparing.md")
    example = re.search(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert example
    (line,) = (line.strip() for line in example.group(1).splitlines() if "wattline compare" in line)
    words = [str(example_run) if word.startswith("runs/") else word for word in shlex.split(line)[1:]]
    done = subprocess.run(
        [sys.executable, "-m", "wattline.cli", *words], cwd=tmp_path, capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "comparison.md").read_text(encoding="utf-8").startswith("### Wattline: passed")
    assert (tmp_path / "comparison.html").is_file()


def test_every_verdict_and_gate_is_documented() -> None:
    from wattline.reports.comparing.comparison import VERDICTS
    from wattline.reports.comparing.gate import GATES

    text = text_of("docs/comparing.md")
    assert [word for word in VERDICTS if f"`{word}`" not in text] == []
    assert [name for name in GATES if not re.search(rf"^\| `{name}[:`]", text, re.MULTILINE)] == []
