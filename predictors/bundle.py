"""Bundles: a fitted predictor as one file of data, ``.wl``.

A bundle is a zip archive::

    wattline.json        format name and version, wattline version, when, provenance, sha256 of every other member
    model.json           facts: devices, words, curves, quantiles
    arrays/<name>.npy    numbers, without pickle

Nothing in it is executed. A reader checks format, version and checksums before it believes anything.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import time
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wattline import __version__
from wattline.errors import BundleError, storage_error
from wattline.files import atomic_write

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FORMAT = "wattline-predictor"
VERSION = 2
"""Rises when a reader of an older version would misread a newer bundle."""
SUFFIX = ".wl"
_HEAD, _MODEL, _ARRAYS = "wattline.json", "model.json", "arrays/"
_LARGEST = 512 * 2**20
"""Bytes beyond which a bundle is refused, packed or unpacked: none of ours comes near, a zip bomb does."""
_UNREADABLE = (
    KeyError, UnicodeDecodeError, zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError,
    RuntimeError,  # an encrypted member
)  # fmt: skip
"""What reading a member of a damaged archive raises."""
_AGAIN = "fit the predictor again, or fetch the file again"


def write_bundle(
    path: str | os.PathLike[str], facts: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]],
    provenance: Mapping[str, Any],
) -> None:  # fmt: skip
    """Write a bundle atomically.

    Raises:
        StorageError: it cannot be written.
    """
    import numpy as np

    members = {_MODEL: json.dumps(facts, allow_nan=False).encode()}
    for name, array in arrays.items():
        # Figures need no more than float32 where they are many.
        small = array.astype(np.float32) if array.dtype == np.float64 and array.size > 4096 else array
        buffer = io.BytesIO()
        np.save(buffer, small, allow_pickle=False)
        members[f"{_ARRAYS}{name}.npy"] = buffer.getvalue()
    head = {
        "format": FORMAT, "version": VERSION, "wattline": __version__,
        "created_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "provenance": provenance,
        "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in members.items()},
    }  # fmt: skip
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(_HEAD, json.dumps(head, indent=1, allow_nan=False))
        for name, data in members.items():
            archive.writestr(name, data)
    atomic_write(path, out.getvalue())


def read_bundle(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, NDArray[Any]], dict[str, Any]]:
    """Read a bundle.

    Returns:
        Facts, arrays, and the head (with ``provenance``).

    Raises:
        BundleError: damaged, foreign, or of a newer version.
        StorageError: it cannot be read.
    """
    try:
        if Path(path).stat().st_size > _LARGEST:
            raise _absurd(path)
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise BundleError(f"no predictor at {path}", todo="fit one: `wattline fit RUN`") from None
    except OSError as error:
        raise storage_error(error, "reading", path) from error
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
    except (zipfile.BadZipFile, ValueError, OSError, IndexError, OverflowError, NotImplementedError):
        raise BundleError(
            f"{path} is not a predictor bundle",
            why="it is truncated" if data[:2] == b"PK" else "it is another kind of file",
            todo=_AGAIN,
        ) from None
    with archive:
        # Before anything is unpacked. A member that holds more than it says is cut there, and fails its checksum.
        if sum(member.file_size for member in archive.infolist()) > _LARGEST:
            raise _absurd(path)
        head = _head(archive, path)
        members = {name: _member(archive, name, digest, path) for name, digest in head["sha256"].items()}
    try:
        facts = json.loads(members[_MODEL])
        arrays = {k.removeprefix(_ARRAYS)[:-4]: _array(v) for k, v in members.items() if k.startswith(_ARRAYS)}
    except (KeyError, ValueError, EOFError, RecursionError) as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from None
    return facts, arrays, head


def _head(archive: zipfile.ZipFile, path: object) -> dict[str, Any]:
    try:
        head = json.loads(archive.read(_HEAD))
        form, version = head["format"], head["version"]
    except KeyError:
        why = f"it holds no {_HEAD} of ours"
        raise BundleError(f"{path} is not a predictor bundle", why=why, todo=_AGAIN) from None
    except (ValueError, TypeError, RecursionError, *_UNREADABLE) as error:
        raise _damaged(path, str(error)) from None
    if form != FORMAT or not isinstance(version, int):
        raise BundleError(f"{path} is not a predictor bundle", why=f"its format is {form!r}", todo=_AGAIN)
    if version > VERSION:
        raise BundleError(
            f"the bundle {path} has version {version}",
            why=f"this wattline reads version {VERSION} and older; it was written by {head.get('wattline')}",
            todo="upgrade wattline",
        )
    if not isinstance(head.get("sha256"), dict):
        raise _damaged(path, "it has no checksums")
    return dict(head)


def _member(archive: zipfile.ZipFile, name: str, digest: str, path: object) -> bytes:
    try:
        data = archive.read(name)
    except _UNREADABLE as error:
        raise _damaged(path, str(error)) from None
    if hashlib.sha256(data).hexdigest() != digest:
        raise _damaged(path, f"the checksum of {name} does not match")
    return data


def _array(data: bytes) -> NDArray[np.generic]:
    """The array of a member; raises ``ValueError`` for objects (which would be pickles) and for a false length."""
    import numpy as np

    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    if version != (1, 0):
        raise ValueError(f"an array of version {version}")
    try:
        shape, by_columns, dtype = np.lib.format.read_array_header_1_0(stream)
    except (SyntaxError, TypeError, MemoryError, tokenize.TokenError) as error:  # of the literal that it is
        raise ValueError(f"a header that cannot be read ({error})") from None
    if dtype.hasobject:
        raise ValueError("an array of objects")
    # Before numpy makes room for as many figures as the header says.
    if math.prod(shape) * dtype.itemsize != len(data) - stream.tell():
        raise ValueError(f"an array of {shape} in {len(data)} bytes")
    flat: NDArray[np.generic] = np.frombuffer(data, dtype, offset=stream.tell()).copy()
    return flat.reshape(shape, order="F" if by_columns else "C")


def _absurd(path: object) -> BundleError:
    return BundleError(f"{path} is too large to be a predictor bundle", why=f"more than {_LARGEST} bytes")


def _damaged(path: object, why: str) -> BundleError:
    return BundleError(f"the bundle {path} is damaged", why=why, todo=_AGAIN)
