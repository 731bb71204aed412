"""Case: frozen, hashable, with a key that never changes."""

from __future__ import annotations

import dataclasses
import json
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattline.case import FILLS, REGIMES, Case
from wattline.errors import ParamError, SchemaError, UnknownNameError

GEMM = {"batch": 1, "m": 512, "n": 512, "k": 512, "dtype": "fp32", "layout": "nn"}

_VALUES = st.one_of(
    st.booleans(), st.integers(-(2**50), 2**50), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=8)
)
_CASES = st.builds(
    Case,
    op=st.sampled_from(["gemm.dense", "softmax.rows"]),
    impl=st.sampled_from(["torch", "triton"]),
    params=st.dictionaries(st.text(max_size=6), _VALUES, max_size=5),
    regime=st.sampled_from(sorted(REGIMES)),
    data=st.sampled_from(sorted(FILLS)),
)


def test_keys_are_pinned() -> None:
    """Runs of earlier versions are resumed and compared by these: a change here breaks them all."""
    assert Case("gemm.dense", "torch", GEMM).key == "6d0703dc339742fa"
    other = Case("softmax.rows", "triton", {"rows": 8, "share": 0.5, "causal": True}, regime="hot", data="normal")
    assert other.key == "18ad4a07deecfbcf"


def test_the_order_of_parameters_does_not_matter() -> None:
    backwards = Case("gemm.dense", "torch", dict(reversed(GEMM.items())))
    assert backwards == Case("gemm.dense", "torch", GEMM)
    assert backwards.key == "6d0703dc339742fa"


@pytest.mark.parametrize(
    "change",
    [{"op": "gemm.tiled"}, {"impl": "triton"}, {"params": {**GEMM, "m": 513}}, {"regime": "hot"}, {"data": "zeros"}],
)  # fmt: skip
def test_every_field_counts(change: dict[str, Any]) -> None:
    case = Case("gemm.dense", "torch", GEMM)
    other = dataclasses.replace(case, **change)
    assert other != case
    assert other.key != case.key


def test_values_of_different_type_are_different_cases() -> None:
    """Python holds 1 == 1.0 == True; a parameter of another type is another question."""
    cases = [Case("op", "torch", {"x": x}) for x in (1, 1.0, True, "1")]
    assert len({case.key for case in cases}) == 4
    for i, first in enumerate(cases):
        assert [first == second for second in cases] == [i == j for j in range(4)]


@given(_CASES, _CASES)
def test_equality_hash_and_key_agree(a: Case, b: Case) -> None:
    assert (a == b) == (a.key == b.key)
    if a == b:
        assert hash(a) == hash(b)
    assert a != a.key


@given(_CASES)
def test_nothing_is_lost_by_dict_or_pickle(case: Case) -> None:
    assert Case.from_dict(case.to_dict()) == case
    again = pickle.loads(pickle.dumps(case))
    assert again == case
    assert dict(again.params) == dict(case.params)


def test_the_key_is_the_same_in_another_process(python_json: Callable[..., Any]) -> None:
    code = (
        "import json, sys; from wattline.case import Case; "
        "print(json.dumps(Case('gemm.dense', 'torch', json.loads(sys.argv[1])).key))"
    )
    assert python_json(code, json.dumps(GEMM)) == "6d0703dc339742fa"


def test_frozen_down_to_the_parameters() -> None:
    source = dict(GEMM)
    case = Case("gemm.dense", "torch", source)
    source["m"] = 1
    assert case.params["m"] == 512
    with pytest.raises(TypeError):
        case.params["m"] = 1  # type: ignore[index]
    with pytest.raises(dataclasses.FrozenInstanceError):
        case.op = "x"  # type: ignore[misc]


def test_unknown_conditions_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="unknown regime 'warm'"):
        Case("a", "b", regime="warm")
    with pytest.raises(UnknownNameError, match="unknown data fill 'ones'"):
        Case("a", "b", data="ones")


@pytest.mark.parametrize("key", ["op", "impl", "params", "regime", "data"])
def test_a_missing_field_is_a_schema_error(key: str) -> None:
    data = Case("gemm.dense", "torch", GEMM).to_dict()
    del data[key]
    with pytest.raises(SchemaError, match="not a case"):
        Case.from_dict(data)


@pytest.mark.parametrize("params", [None, 5, "abc", [1, 2]])
def test_parameters_that_are_no_mapping_are_a_schema_error(params: object) -> None:
    with pytest.raises(SchemaError, match="not a case"):
        Case.from_dict({"op": "a", "impl": "b", "params": params, "regime": "cold", "data": "uniform"})


def test_label_and_dtype() -> None:
    case = Case("gemm.dense", "torch", {"m": 5, "dtype": "fp32"}, data="zeros")
    assert case.label() == "gemm.dense torch m=5 fp32 cold zeros"
    assert case.dtype == "fp32"
    assert Case("launch.overhead", "torch").dtype is None
    assert Case("launch.overhead", "torch").label() == "launch.overhead torch cold"


def test_caps_are_conditions_and_leave_other_keys_alone() -> None:
    plain = Case("gemm.dense", "torch", GEMM)
    assert plain.key == Case("gemm.dense", "torch", GEMM, power_limit_w=None, clock_hz=None).key == "6d0703dc339742fa"
    assert not {"power_limit_w", "clock_hz"} & plain.to_dict().keys()
    assert (plain.caps, plain.capped) == ({}, False)
    whole = Case("gemm.dense", "torch", GEMM, power_limit_w=500)
    assert whole == Case("gemm.dense", "torch", GEMM, power_limit_w=500.0)  # one limit, however it is written
    both = dataclasses.replace(whole, clock_hz=1.41e9)
    assert both.caps == {"power_limit_w": 500.0, "clock_hz": 1.41e9}
    assert len({plain.key, whole.key, both.key, Case("gemm.dense", "torch", GEMM, clock_hz=500).key}) == 4
    assert both.label().endswith("cold at 500 W at 1410 MHz")
    assert Case.from_dict(json.loads(json.dumps(both.to_dict()))) == both
    assert pickle.loads(pickle.dumps(both)) == both


@pytest.mark.parametrize("value", [0, -1.0, float("inf"), float("nan"), True, "500"])
def test_a_cap_that_is_no_figure_is_refused(value: Any) -> None:
    with pytest.raises(ParamError, match="power_limit_w"):
        Case("a", "b", power_limit_w=value)
    with pytest.raises(SchemaError, match="not a case"):
        Case.from_dict({**Case("a", "b").to_dict(), "clock_hz": value})
