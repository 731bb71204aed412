"""Record: one JSON line that loses nothing, and a reader that trusts nothing."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattline.case import Case
from wattline.errors import SchemaError
from wattline.record import (
    DISQUALIFYING,
    FLAGS,
    SCHEMA,
    STATUSES,
    Check,
    Energy,
    Flag,
    Measurement,
    Reason,
    Record,
    entry_of,
)
from wattline.stats import summarize
from wattline.work import Work

MakeRecord = Callable[..., Record]

_TIMES = st.lists(st.floats(1e-9, 1e4), min_size=1, max_size=8)
_PART = st.floats(0, 1e6)
_MEASUREMENTS = st.builds(
    lambda samples, **rest: Measurement(tuple(float(f"{s:.7g}") for s in samples), stats=summarize(samples), **rest),
    samples=_TIMES,
    calls_per_sample=st.integers(1, 10**6),
    stop=st.sampled_from(["precise", "stable_noise", "time_limit", "sample_limit"]),
    warmup_calls=st.integers(0, 99),
    warmup_s=_PART,
    first_call_s=_PART,
    rotations=st.integers(1, 99),
    timer=st.text(max_size=9),
    timed_s=_PART,
    energy=st.none() | st.builds(
        Energy, power_w=_PART, energy_j=_PART, energy_lo_j=_PART, energy_hi_j=_PART, source=st.text(max_size=9),
        scope=st.sampled_from(["gpu", "package"]), idle_w=st.none() | _PART,
        budget=st.dictionaries(st.sampled_from(["gain", "drift"]), _PART),
        flags=st.lists(st.text(max_size=5)).map(tuple),
    ),
    telemetry=st.dictionaries(st.text(max_size=5), _PART, max_size=3),
    facts=st.dictionaries(st.text(max_size=5), _PART | st.text(max_size=4) | st.lists(st.integers(0, 9)), max_size=3),
    flags=st.lists(st.builds(Flag, st.sampled_from(sorted(FLAGS)), st.text(max_size=9)), max_size=3).map(tuple),
    check=st.none() | st.builds(Check, _PART, _PART, st.booleans(), st.sampled_from(["full", "64 rows"])),
)  # fmt: skip
_RECORDS = st.builds(
    Record,
    case=st.builds(
        Case,
        op=st.text(max_size=9),
        impl=st.text(max_size=5),
        params=st.dictionaries(st.text(max_size=4), st.integers()),
    ),
    status=st.sampled_from(sorted(STATUSES)),
    device=st.text(max_size=9),
    reason=st.none() | st.builds(Reason, st.text(max_size=9), st.text(max_size=30)),
    measurement=st.none() | _MEASUREMENTS,
    work=st.none() | st.builds(Work, flops=st.just({"fp32": 2.0}), bytes_read=st.just({"device": 3.0})),
    bound_s=st.none() | _PART,
    variant=st.sampled_from(["", "a", "b"]),
    seed=st.integers(0, 2**63 - 1),
    started_at=st.just("2026-01-02T03:04:05Z"),
    wall_s=_PART.map(lambda s: round(s, 6)),
    sequence=st.integers(-1, 10**6),
)


@given(_RECORDS)
def test_nothing_is_lost_by_a_line(record: Record) -> None:
    line = record.to_json()
    assert "\n" not in line
    assert line.isascii()
    again = Record.from_json(line)
    assert again == record
    assert again.to_json() == line
    assert again.identity == record.identity


def test_a_full_record_by_hand(make_record: MakeRecord) -> None:
    data = json.loads(make_record().to_json())
    assert data["schema"] == SCHEMA == 1
    assert data["key"] == make_record().case.key
    assert data["case"]["params"]["m"] == 512
    assert data["measurement"]["stats"]["median_s"] == 1.1e-3
    assert data["measurement"]["samples_s"] == [1.0e-3, 1.1e-3, 1.2e-3]
    assert data["work"]["flops"] == {"fp32": 2.0 * 512 * 512 * 256}
    assert "energy" not in data["measurement"]  # nothing measured it: absent, never 0 J
    assert "variant" not in data


def test_not_a_number_is_null_on_disk_and_comes_back(make_record: MakeRecord) -> None:
    record = make_record()
    assert record.measurement is not None
    measurement = dataclasses.replace(
        record.measurement, check=Check(math.nan, 1e-5, False, "full"), first_call_s=math.nan,
        telemetry={"host_clock_hz": math.nan},
    )  # fmt: skip
    line = dataclasses.replace(record, measurement=measurement, bound_s=math.inf).to_json()
    assert "NaN" not in line
    assert "Infinity" not in line
    again = Record.from_json(line)
    assert again.measurement is not None
    assert again.measurement.check is not None
    assert math.isnan(again.measurement.check.error)
    assert again.measurement.check.passed is False
    assert math.isnan(again.measurement.first_call_s)
    assert math.isnan(again.measurement.telemetry["host_clock_hz"])
    assert Record.from_json(line) == again
    assert again.bound_s is None
    assert again.to_json() == line.replace('"bound_s":null,"bound_by":"compute",', "")


def test_unknown_figures_are_equal_and_known_ones_compared(make_record: MakeRecord) -> None:
    measured = make_record().measurement
    assert measured is not None
    one, other = (dataclasses.replace(measured, first_call_s=float("nan"), telemetry={"a": float("nan")}) for _ in "12")
    assert one == other
    assert one != dataclasses.replace(one, first_call_s=1.0)
    assert one != dataclasses.replace(one, telemetry={})
    assert one != dataclasses.replace(one, stop="another reason")
    assert Check(float("nan"), 1e-5, False, "full") == Check(float("nan"), 1e-5, False, "full")
    assert Check(1e-6, 1e-5, True, "full") != Check(2e-6, 1e-5, True, "full")
    assert measured != "another type"
    assert hash(one) == hash(other)
    assert len({Check(float("nan"), 1e-5, False, "full"), Check(float("nan"), 1e-5, False, "full")}) == 1


def test_samples_keep_seven_digits(make_record: MakeRecord) -> None:
    record = make_record(samples=(1.23456789e-5, 1.0 / 3))
    again = Record.from_json(record.to_json())
    assert again.measurement is not None
    assert again.measurement.samples_s == (1.234568e-5, 0.3333333)
    assert again.time_s == record.time_s  # statistics keep them all


def test_what_a_predictor_may_learn_from(make_record: MakeRecord) -> None:
    record = make_record()
    assert record.valid
    assert record.time_s == 1.1e-3
    assert record.efficiency == pytest.approx(0.5e-3 / 1.1e-3)
    assert record.measurement is not None
    for code in FLAGS:
        flagged = dataclasses.replace(record.measurement, flags=(Flag(code, "why"),))
        marked = dataclasses.replace(record, measurement=flagged)
        assert marked.valid == (code not in DISQUALIFYING)
        assert marked.flags == (code,)
    assert not make_record(status="failed").valid
    empty = make_record(status="unsupported", measurement=None, reason=Reason("no_cuda", "no CUDA device"))
    assert (empty.valid, empty.time_s, empty.efficiency, empty.flags) == (False, None, None, ())


def test_two_causes_of_one_flag_are_one_flag(make_record: MakeRecord) -> None:
    """Counts of flags are counts of records; both messages stay with the measurement."""
    record = make_record()
    assert record.measurement is not None
    flags = (Flag("foreign_process", "steal"), Flag("noisy", "wide"), Flag("foreign_process", "others"))
    record = dataclasses.replace(record, measurement=dataclasses.replace(record.measurement, flags=flags))
    assert record.flags == ("foreign_process", "noisy")
    again = Record.from_json(record.to_json())
    assert again.measurement is not None
    assert again.measurement.flags == flags


def test_variants_are_records_of_their_own(make_record: MakeRecord) -> None:
    assert make_record(variant="a").identity != make_record(variant="b").identity
    assert make_record().identity == (make_record().case.key, "")


def test_a_newer_schema_says_to_upgrade(make_record: MakeRecord) -> None:
    data = json.loads(make_record().to_json()) | {"schema": SCHEMA + 1}
    with pytest.raises(SchemaError, match="a record of schema 2") as caught:
        Record.from_dict(data)
    assert "schema 1" in caught.value.why
    assert caught.value.todo == "upgrade wattline"


@pytest.mark.parametrize("line", ["", "{", "[]", "5", "null", '"x"', "{}", '{"schema": "1"}', '{"schema": 1}',
                                  '{"schema":1,"case":{}}', "\x00\x01",
                                  '{"schema":1,"case":5,"status":"ok"}'])  # fmt: skip
def test_what_is_no_record_is_refused(line: str) -> None:
    with pytest.raises(SchemaError):
        Record.from_json(line)


def test_a_record_of_an_unknown_regime_is_damaged_and_not_a_slip_of_the_user(make_record: MakeRecord) -> None:
    data = json.loads(make_record().to_json())
    data["case"]["regime"] = "lukewarm"
    with pytest.raises(SchemaError, match="damaged record"):
        Record.from_dict(data)


@pytest.mark.parametrize("junk", [None, "1e-3", True, -1e-3, [1e-3]])
@pytest.mark.parametrize("name", ["median_s", "lo_s", "p99_s", "n"])
def test_statistics_that_are_no_figures_are_damage(make_record: MakeRecord, name: str, junk: object) -> None:
    """Found when the record is read, not by whoever divides by it later."""
    data = json.loads(make_record().to_json())
    data["measurement"]["stats"][name] = junk
    with pytest.raises(SchemaError, match="damaged record") as caught:
        Record.from_dict(data)
    assert f"stats.{name}" in caught.value.why


def _paths(data: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [at] * bool(at) + [path for key, value in inner for path in _paths(value, (*at, key))]


@pytest.mark.parametrize("junk", [None, 5, -1.5, "junk", [], [1, "x"], {}, {"x": {"y": 1}}, True])
def test_any_field_replaced_by_junk_gives_a_record_or_a_schema_error(make_record: MakeRecord, junk: Any) -> None:
    original = json.loads(make_record(reason=Reason("c", "m")).to_json())
    for path in _paths(original):
        data = copy.deepcopy(original)
        place = data
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = junk
        with contextlib.suppress(SchemaError):  # any other error fails the test
            assert isinstance(Record.from_dict(data), Record)


@given(st.integers(0, 10**4))
def test_a_line_cut_anywhere_is_a_schema_error(cut: int) -> None:
    line = Record(Case("op", "torch", {"m": 1}), "skipped", "cpu", reason=Reason("slow", "too slow")).to_json()
    with pytest.raises(SchemaError):
        Record.from_json(line[: cut % len(line)])


def test_a_line_without_its_samples_is_all_else(make_record: MakeRecord) -> None:
    line = make_record(samples=[1e-3, 2e-3, 3e-3]).to_json()
    expected = json.loads(line)
    assert expected["measurement"].pop("samples_s") == [1e-3, 2e-3, 3e-3]
    found = entry_of(line)
    assert found["measurement"].pop("samples_s") == []
    assert found == expected


def test_words_that_look_like_samples_stay_words() -> None:
    words = 'fell over at "samples_s":[1,2] of it'
    line = Record(Case("op", "torch", {"m": 1}), "failed", "cpu", reason=Reason("bad", words)).to_json()
    assert entry_of(line)["reason"]["message"] == words


@pytest.mark.parametrize("line", ['{"schema":99}', "[1]", "nothing", '{"measurement":{"samples_s":[1,'])
def test_no_record_has_no_entry(line: str) -> None:
    with pytest.raises(SchemaError):
        entry_of(line)
