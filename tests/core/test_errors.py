"""Errors: three lines, one hierarchy, and nothing lost on the way between processes."""

from __future__ import annotations

import copy
import errno
import os
import pickle

import pytest

from wattline import errors
from wattline.errors import (
    DeviceError,
    RunLockedError,
    StorageError,
    StorageFullError,
    UnknownNameError,
    UnsupportedError,
    UsageError,
    WattlineError,
    storage_error,
    unknown_name,
)

KINDS = sorted(
    (kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, WattlineError)),
    key=lambda kind: kind.__name__,
)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_kind_keeps_its_three_lines_through_pickle_and_copy(kind: type[WattlineError]) -> None:
    error = kind("asked", why="found", todo="do")
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(again) is kind
        assert (again.what, again.why, again.todo) == ("asked", "found", "do")
        assert again.args == ("asked",)


def test_extra_fields_survive_pickling() -> None:
    unsupported = pickle.loads(pickle.dumps(UnsupportedError("no fp8", why="sm 8.0", code="capability")))
    assert (unsupported.code, unsupported.why) == ("capability", "sm 8.0")
    assert pickle.loads(pickle.dumps(DeviceError("lost", sticky=True))).sticky is True
    assert DeviceError("lost").sticky is False


def test_text_joins_what_is_there() -> None:
    assert str(WattlineError("asked")) == "asked"
    assert str(WattlineError("asked", todo="do")) == "asked; do"
    assert str(WattlineError("asked", why="found", todo="do")) == "asked; found; do"


def test_exit_codes_follow_the_contract() -> None:
    codes = {kind.__name__: kind.exit_code for kind in KINDS}
    assert codes.pop("Interrupted") == 130
    assert codes.pop("CasesFailedError") == 1
    assert set(codes.values()) == {2}


def test_a_library_caller_can_catch_by_kind() -> None:
    assert issubclass(UnknownNameError, UsageError)
    assert issubclass(errors.RangeError, errors.ParamError)
    assert issubclass(errors.BundleError, errors.SchemaError)
    for kind in (StorageFullError, RunLockedError, errors.SchemaError):
        assert issubclass(kind, StorageError)


def test_unknown_name_shows_the_nearest_spellings() -> None:
    error = unknown_name("op", "gemm.dens", ["gemm.dense", "attention.prefill"], listing="wattline list")
    assert error.what == "unknown op 'gemm.dens'"
    assert error.why == "near it: gemm.dense"
    assert error.todo == "`wattline list` lists them"


def test_unknown_name_without_a_near_one_lists_a_dozen() -> None:
    known = [f"name{i:02d}" for i in range(20)]
    assert unknown_name("thing", "zzz", known[:3]).why == "known: name00, name01, name02"
    shown = unknown_name("thing", "zzz", known).why
    assert shown.endswith(", ...")
    assert shown.count("name") == 12
    nothing = unknown_name("thing", 5, [])
    assert (nothing.what, nothing.why, nothing.todo) == ("unknown thing '5'", "no thing is known", "")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_has_its_own_kind(number: int) -> None:
    error = storage_error(OSError(number, os.strerror(number)), "appending to", "records.jsonl")
    assert type(error) is StorageFullError
    assert error.what == "no space left while appending to records.jsonl"
    assert "--resume" in error.todo


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_a_forbidden_folder_says_what_to_do(number: int) -> None:
    error = storage_error(OSError(number, os.strerror(number)), "making", "/x")
    assert type(error) is StorageError
    assert error.what == "no permission while making /x"
    assert error.why == os.strerror(number)
    assert error.todo


def test_other_faults_keep_the_system_text() -> None:
    error = storage_error(OSError(errno.EIO, "Input/output error"), "reading", "/x")
    assert (type(error), error.what, error.why) == (StorageError, "failed while reading /x", "Input/output error")
    assert storage_error(OSError("odd"), "reading", "/x").why == "odd"


@pytest.mark.parametrize(("doing", "says"), [("reading", "owner"), ("writing", "--out")])
def test_advice_on_a_forbidden_file_suits_what_was_done(doing: str, says: str) -> None:
    error = storage_error(PermissionError(errno.EACCES, "Permission denied"), doing, "/x")
    assert says in error.todo


@pytest.mark.parametrize(
    ("doing", "todo"),
    [("reading", "nothing is there"), ("writing", "make the folder"), ("making", "make the folder")],
)
def test_what_is_missing_depends_on_what_was_wanted(doing: str, todo: str) -> None:
    assert todo in storage_error(FileNotFoundError(errno.ENOENT, "No such file or directory"), doing, "/x/y").todo
    assert "name a file in it" in storage_error(IsADirectoryError(errno.EISDIR, "Is a directory"), doing, "/x/y").todo


@pytest.mark.parametrize("number", [errno.EEXIST, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG])
def test_a_path_that_leads_nowhere_is_to_be_checked(number: int) -> None:
    assert "check the path" in storage_error(OSError(number, os.strerror(number)), "making", "/x").todo
