"""One hierarchy of errors: every error says what was asked, what was found and what to do.

The command line prints the three lines and exits with ``exit_code``; a library caller catches
:class:`WattlineError` or one of its kinds. ``exit_code`` follows the command line's contract:
1 a regression or failed cases, 2 wrong use or an error, 130 interrupted.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from difflib import get_close_matches


class WattlineError(Exception):
    """Base of all errors of this package.

    Args:
        what: what went wrong, one line.
        why: what was found, one line; may be empty.
        todo: what the reader can do about it, one line; may be empty.
    """

    exit_code: int = 2

    def __init__(self, what: str, *, why: str = "", todo: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        self.todo = todo

    def __str__(self) -> str:
        return "; ".join(part for part in (self.what, self.why, self.todo) if part)

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.what, self.why, self.todo))


def _rebuild(kind: type[WattlineError], what: str, why: str, todo: str) -> WattlineError:
    return kind(what, why=why, todo=todo)


class UsageError(WattlineError):
    """The request makes no sense: a wrong flag, an empty selection."""


class UnknownNameError(UsageError):
    """A name (op, parameter, preset, device, format ...) that nothing answers to."""


class ParamError(UsageError):
    """A parameter with a value outside what it declares."""


class RangeError(ParamError):
    """A range that cannot be read, or never ends."""


class PlanError(UsageError):
    """A plan that cannot be carried out, such as a case larger than memory."""


class UnsupportedError(WattlineError):
    """Something this machine or version cannot do. ``code`` is the machine-readable reason."""

    def __init__(self, what: str, *, why: str = "", todo: str = "", code: str = "unsupported") -> None:
        super().__init__(what, why=why, todo=todo)
        self.code = code

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild_unsupported, (self.what, self.why, self.todo, self.code))


def _rebuild_unsupported(what: str, why: str, todo: str, code: str) -> UnsupportedError:
    return UnsupportedError(what, why=why, todo=todo, code=code)


class StorageError(WattlineError):
    """A file or folder that cannot be read or written."""


class StorageFullError(StorageError):
    """No space left (or a file-size or quota limit): what was written before stays intact."""


class RunLockedError(StorageError):
    """Another process is writing to this run folder."""


class SchemaError(StorageError):
    """A file of a newer, damaged or foreign format."""


class BundleError(SchemaError):
    """A predictor bundle that is damaged, foreign or of a newer format."""


class DeviceError(WattlineError):
    """The device failed; ``sticky`` says that this process cannot use it any more."""

    def __init__(self, what: str, *, why: str = "", todo: str = "", sticky: bool = False) -> None:
        super().__init__(what, why=why, todo=todo)
        self.sticky = sticky

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild_device, (self.what, self.why, self.todo, self.sticky))


def _rebuild_device(what: str, why: str, todo: str, sticky: bool) -> DeviceError:
    return DeviceError(what, why=why, todo=todo, sticky=sticky)


class SensorError(WattlineError):
    """A sensor that is missing, forbidden or silent."""


class DataError(WattlineError):
    """Measurements that cannot be learned from: missing columns, no valid rows, wrong units."""


class NotFittedError(WattlineError):
    """A predictor was asked before it was fitted."""


class Interrupted(WattlineError):  # noqa: N818 - the state of a run, not a fault
    """The user stopped the run; it can be resumed."""

    exit_code = 130


class CasesFailedError(WattlineError):
    """The run ended, but some cases failed."""

    exit_code = 1


def unknown_name(
    kind: str, name: object, known: Iterable[str], *, where: str = "", listing: str = ""
) -> UnknownNameError:
    """An :class:`UnknownNameError` that names the nearest known spellings.

    Args:
        kind: what the name should have named, e.g. ``"op"``.
        name: the name that was given.
        known: all valid names.
        where: said behind the name, e.g. ``" in the condition 'q > 1'"``.
        listing: a command that lists them, e.g. ``"wattline list"``.
    """
    names = sorted(known)
    near = get_close_matches(str(name), names, n=3, cutoff=0.5)
    shown = ", ".join(near or names[:12]) + (", ..." if not near and len(names) > 12 else "")
    return UnknownNameError(
        f"unknown {kind} {str(name)!r}{where}",
        why=(f"near it: {shown}" if near else f"known: {shown}") if names else f"no {kind} is known",
        todo=f"`{listing}` lists them" if listing else "",
    )


def storage_error(error: OSError, doing: str, path: object) -> StorageError:
    """The typed error for an ``OSError`` met while ``doing`` something to ``path``."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return StorageFullError(
            f"no space left while {doing} {path}",
            why=error.strerror or str(error),
            todo="free some space (or raise the quota or file-size limit) and repeat, bench with --resume; "
            "what was measured before is intact",
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        read = doing.startswith("reading")
        return StorageError(
            f"no permission while {doing} {path}",
            why=error.strerror or str(error),
            todo="ask its owner, or change its permissions"
            if read
            else "choose a folder that you may write to with --out, or change its permissions",
        )
    return StorageError(
        f"failed while {doing} {path}", why=error.strerror or str(error), todo=_mend_path(error.errno, doing)
    )


def _mend_path(number: int | None, doing: str) -> str:
    """What to do about a path that the system refused; empty where it is not the path's fault."""
    if number == errno.EISDIR:
        return "name a file in it, not the folder itself"
    if number == errno.ENOENT:
        into = doing.startswith(("writing", "making", "appending"))
        return "make the folder that it lies in first, or name another" if into else "check the path: nothing is there"
    wrong = number in (errno.EEXIST, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)
    return "check the path: a part of it is missing, or is not of the kind that is needed" if wrong else ""
