"""Calibrated profiles: kept whole, per device and versions, and never half written."""

from __future__ import annotations

import json

import pytest

from wattline.collectors.energy.profiles import device_key, load_all, load_profile, profiles_path, save_profiles
from wattline.collectors.energy.sources import SensorProfile
from wattline.errors import SchemaError, StorageError

PROFILE = SensorProfile(0.1, 0.025, 0.01, 0.02, 1e-3, 0.02, calibrated=True, note="found by a test")
KEY = device_key("GPU-1", "570.1", "96.00")


def test_what_was_saved_is_loaded(tmp_path):
    path = tmp_path / "deep" / "sensors.json"
    assert save_profiles(KEY, {"counter": PROFILE}, path) == path
    assert load_profile(KEY, "counter", path) == PROFILE
    assert load_profile(KEY, "power", path) is None
    assert load_profile(device_key("GPU-1", "571.0", "96.00"), "counter", path) is None  # another driver


def test_others_are_kept(tmp_path):
    path = tmp_path / "sensors.json"
    other = SensorProfile(0.02)
    save_profiles(KEY, {"counter": PROFILE}, path)
    save_profiles("another", {"counter": other}, path)
    save_profiles(KEY, {"power": other}, path)
    assert load_profile(KEY, "counter", path) == PROFILE
    assert load_profile(KEY, "power", path) == other
    assert load_profile("another", "counter", path) == other
    assert [p.name for p in tmp_path.iterdir()] == ["sensors.json"]


def test_nothing_was_calibrated_yet(tmp_path):
    assert load_all(tmp_path / "none.json") == {}


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"schema": 1}', '{"schema": 2, "devices": {}}', '{"devices": []}'])
def test_damaged_and_newer_files_are_named_and_left_alone(tmp_path, text):
    path = tmp_path / "sensors.json"
    path.write_text(text)
    with pytest.raises(SchemaError, match=r"sensors\.json"):
        load_profile(KEY, "counter", path)
    with pytest.raises(SchemaError):
        save_profiles(KEY, {"counter": PROFILE}, path)
    assert path.read_text() == text


def test_a_damaged_entry(tmp_path):
    path = tmp_path / "sensors.json"
    path.write_text(json.dumps({"schema": 1, "devices": {KEY: {"counter": {"window_s": 1.0}}}}))
    with pytest.raises(SchemaError, match="damaged"):
        load_profile(KEY, "counter", path)


def test_unknown_fields_of_a_later_version_are_passed_over(tmp_path):
    path = tmp_path / "sensors.json"
    path.write_text(json.dumps({"schema": 1, "devices": {KEY: {"counter": {"period_s": 0.1, "colour": 1}}}}))
    assert load_profile(KEY, "counter", path) == SensorProfile(0.1)


def test_a_folder_in_the_way(tmp_path):
    (tmp_path / "sensors.json").mkdir()
    with pytest.raises(StorageError):
        load_all(tmp_path / "sensors.json")
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        save_profiles(KEY, {}, tmp_path / "file" / "sensors.json")


def test_where_they_are_kept(tmp_path):
    assert profiles_path({"XDG_CACHE_HOME": "/x/cache"}).as_posix() == "/x/cache/wattline/sensors.json"
    assert profiles_path({"HOME": "/home/me"}).as_posix() == "/home/me/.cache/wattline/sensors.json"
    assert profiles_path({"XDG_CACHE_HOME": "relative", "HOME": "/h"}).as_posix() == "/h/.cache/wattline/sensors.json"
