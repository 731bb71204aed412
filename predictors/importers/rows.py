"""What an importer hands back, and the helpers that all of them share."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from wattline.device import DeviceSpec, known_devices, match_device
from wattline.errors import DataError, ParamError, UnknownNameError, UsageError, unknown_name

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

BYTES = "int8"
"""The number format of what moves bytes and computes nothing: copies and storage."""
NUMBER_FORMATS: dict[str, str] = {
    "bfloat16": "bf16", "float16": "fp16", "half": "fp16", "float": "fp32", "float32": "fp32", "double": "fp64",
    "float64": "fp64", "int4_wo": "w4a16", "fp8_e4m3fn": "fp8_e4m3",
}  # fmt: skip
"""Number formats as others write them; names that are ours already are left out."""


@dataclass
class Rows:
    """The rows that an importer made of a file.

    Attributes:
        frame: columns op, device, impl, dtype, the parameters, ``time_s``, ``power_w`` and ``site``; further columns
            of :data:`wattline.predictors.imported.DESCRIPTIVE`.
        read: how many the file holds.
        left_out: how many of them are not in the frame, by cause in words.
        notes: what a reader should know, such as what was assumed.
        devices: specifications beyond the known ones.
        licence: where the file itself says it.
    """

    frame: pd.DataFrame
    read: int
    left_out: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    devices: dict[str, DeviceSpec] = field(default_factory=dict)
    licence: str = ""


class Keep:
    """Which rows stay, and why the others do not.

    Args:
        count: how many rows there are.
    """

    def __init__(self, count: int) -> None:
        self.mask: NDArray[np.bool_] = np.ones(count, bool)
        self.left_out: dict[str, int] = {}

    def drop(self, bad: NDArray[np.bool_], why: str) -> None:
        """Leave out the rows that are ``bad`` and not left out yet."""
        found = int((bad & self.mask).sum())
        if found:
            self.left_out[why] = self.left_out.get(why, 0) + found
            self.mask &= ~bad

    def drop_absent(self, **columns: NDArray[Any]) -> None:
        """Leave out the rows in which a column is NaN."""
        for name, values in columns.items():
            self.drop(np.isnan(values), f"no {name}")

    def drop_untimed(self, time: NDArray[np.float64], resolution: str) -> None:
        """Leave out rows without a time, or with one that the source's resolution rounded to 0."""
        self.drop(np.isnan(time), "no time")
        self.drop(time == 0, f"a time of 0: below the {resolution} that the source resolves")


@dataclass
class Asked:
    """What the person who imports says beside the file.

    Attributes:
        device: the id of the device of all rows; empty: as the file says.
        renamed: ids by the names that the file has for devices.
        specs: specifications of devices that are not listed, by id.
        facts: what the file does not say, by name (``bytes``, ``collective`` ...), as text.
    """

    device: str = ""
    renamed: Mapping[str, str] = field(default_factory=dict)
    specs: Mapping[str, DeviceSpec] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)

    def spec(self, device: str) -> DeviceSpec:
        """The specification of a device id.

        Raises:
            UnknownNameError: nobody knows it.
        """
        found = self.specs.get(device) or known_devices().get(device)
        if found is None:
            raise unknown_name("device", device, {*self.specs, *known_devices()}, listing="wattline list devices")
        return found

    def number(self, name: str) -> int | None:
        """A fact as a size (``512M``: powers of 1024), ``None`` where it was not given.

        Raises:
            ParamError: not a size.
        """
        from wattline.nccl_tests import parse_size

        if name not in self.facts:
            return None
        try:
            return parse_size(self.facts[name])
        except ParamError as error:
            raise ParamError(f"cannot read --set {name}={self.facts[name]}", why=error.what, todo=error.todo) from None

    def devices(self, names: Collection[str], source: object) -> tuple[dict[str, str], list[str]]:
        """Ids by the names that a file has for its devices, and notes about them.

        Args:
            names: as the file writes them; the empty name where it does not say.
            source: for messages.

        Raises:
            UnknownNameError: a name that no known device answers to, or no name at all.
            UsageError: one id was given for a file that names several devices.
        """
        found: dict[str, str] = {}
        notes: list[str] = []
        told = sorted(set(names))
        if self.device and len(told) > 1:
            raise UsageError(
                f"{source} names {len(told)} devices, --device one for all",
                why=", ".join(told),
                todo=f"give each: --device '{told[0] or 'NAME'}={self.device}'",
            )
        for name in told:
            if self.device or name in self.renamed:
                found[name] = self.spec(self.device or self.renamed[name]).id
                own = self._match(name)
                if name and own != found[name]:
                    notes.append(f"the file says {name}; taken for {found[name]}, as asked")
                continue
            own = self._match(name) or (next(iter(self.specs)) if not name and len(self.specs) == 1 else None)
            if own is None:
                raise self._unknown(name, source)
            found[name] = own
        return found, notes

    def _match(self, name: str) -> str | None:
        """The id of the device that answers to a name."""
        for spec in self.specs.values():
            if name and name in (spec.id, spec.name, *spec.aliases):
                return spec.id
        if name in known_devices():
            return name
        spec_found = match_device(name) if name else None
        return spec_found.id if spec_found else None

    @staticmethod
    def _unknown(name: str, source: object) -> UnknownNameError:
        if not name:
            return UnknownNameError(
                f"{source} does not say on which device it was measured",
                todo="name it: --device h200-sxm (`wattline list devices`), or describe it: --device-spec FILE.json",
            )
        return UnknownNameError(
            f"unknown device {name!r} in {source}",
            why="no listed device has that id, name or alias",
            todo=f"name it: --device '{name}=h200-sxm' (`wattline list devices`), or describe it: --device-spec FILE",
        )


def formats_of(names: NDArray[Any]) -> NDArray[Any]:
    """Number formats by our names ``(n,)``; empty where nobody knows them."""
    from wattline.formats import FORMATS

    ours = {name: NUMBER_FORMATS.get(name, name) for name in set(names)}
    return np.array([ours[name] if ours[name] in FORMATS else "" for name in names], dtype=object)


def joined(*columns: NDArray[Any]) -> list[str]:
    """Whole numbers side by side as a label a row: ``4096x1024``."""
    return ["x".join(str(int(v)) for v in row) for row in zip(*columns, strict=True)]


def made(columns: Mapping[str, Any], keep: Keep, source: object, *, whole: Sequence[str] = ()) -> pd.DataFrame:
    """The frame of the rows that stay.

    Args:
        columns: values of all rows, or one value for all.
        keep: which stay.
        source: for messages.
        whole: columns that hold whole numbers.

    Raises:
        DataError: none stays.
    """
    import pandas as pd

    if not keep.mask.any():
        causes = "; ".join(f"{count} rows: {why}" for why, count in keep.left_out.items())
        raise DataError(
            f"{source} holds no row that can be learned from", why=causes, todo="mend these columns, or measure again"
        )
    frame = pd.DataFrame(dict(columns), index=np.arange(len(keep.mask)))[keep.mask].reset_index(drop=True)
    for name in whole:
        frame[name] = frame[name].astype("int64")
    return frame
