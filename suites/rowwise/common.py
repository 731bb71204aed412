"""What the row-wise operations share: parameters, shapes, formats and the comparison with double precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import isfinite, nan
from typing import Any

from wattline.formats import number_format
from wattline.params import Constraint, DType, Int, Params, Value
from wattline.ranges import parse_range
from wattline.suites.lowdiscrepancy import log_uniform, points
from wattline.suites.workload import BuildContext, Kernel, ParamValues, Workload

FORMATS = ("fp64", "fp32", "bf16", "fp16")
ROWS = 256
CHECKED = 2**22
"""Elements up to which a result is compared whole; of larger ones some rows are."""

Sizes = str | int | Sequence[str | int]


def row_params(*rules: Constraint, **more: Any) -> Params:
    """``rows``, ``cols`` and ``dtype``, and what an operation has besides."""
    return Params(
        *rules,
        rows=Int(doc="rows: tokens, or tokens times heads"),
        cols=Int(doc="elements of a row"),
        dtype=DType(*FORMATS, doc="number format of input and output"),
        **more,
    )  # fmt: skip


def hidden(
    models: Sequence[str] | str = ("llama-3-8b",), tokens: Sizes = "1:4096:x4"
) -> Iterator[dict[str, Any]]:
    """Tokens by the width of public models.

    Args:
        models: names in the model table.
        tokens: rows.
    """
    from wattline.suites.models import get_model

    for name in (models,) if isinstance(models, str) else models:
        for rows in _sizes(tokens):
            yield {"rows": rows, "cols": get_model(name).hidden}


def random(
    count: int = 16, *, seed: int = 0, lo: int = 64, hi: int = 65536, max_elements: int = 2**22
) -> Iterator[dict[str, Any]]:
    """Rows and columns spread log-uniformly, any prefix of which covers the space.

    Args:
        count: how many.
        seed: of the sequence.
        lo, hi: least and most columns; rows go from 1 to as many.
        max_elements: points with more are passed over.
    """
    found = 0
    for u in points(2, seed=seed):
        rows, cols = round(log_uniform(u[0], 1, hi)), round(log_uniform(u[1], lo, hi))
        if rows * cols <= max_elements:
            yield {"rows": rows, "cols": cols}
            found += 1
        if found >= count:
            return


def _sizes(given: Sizes) -> list[int]:
    if isinstance(given, str | int):
        return parse_range(given)
    return list(dict.fromkeys(v for item in given for v in parse_range(item)))


SOURCES: Mapping[str, Callable[..., Iterator[dict[str, Any]]]] = {"hidden": hidden, "random": random}


def shape_of(p: ParamValues) -> tuple[int, int]:
    """``(rows, cols)``."""
    return int(p["rows"]), int(p["cols"])


def some_rows(rows: int, cols: int) -> Any:
    """Indices of the rows to compare: all of a small result, else some, first and last among them."""
    import torch

    wanted = min(rows, max(2, min(ROWS, CHECKED // cols))) if rows * cols > CHECKED else rows
    if wanted == rows:
        return torch.arange(rows)
    return torch.linspace(0, rows - 1, wanted).round().long().unique()


def distance(out: Any, ref: Any) -> float:
    """``||out - ref|| / ||ref||``; NaN where ``out`` holds a NaN or an infinity that the reference has not."""
    import torch

    size = float(torch.linalg.vector_norm(ref))
    apart = float(torch.linalg.vector_norm(out.double() - ref))
    if not (isfinite(size) and isfinite(apart)):
        return nan
    return apart / size if size else (0.0 if apart == 0 else float("inf"))


class RowWise(Workload):
    """An operation on each row. Subclasses say what it does to rows in double precision."""

    params = row_params()
    shape_sources = SOURCES
    factor = 2.0
    """On the tolerance of the format."""

    def reference(self, p: ParamValues, rows: Any, inputs: Mapping[str, Any], which: Any) -> Any:
        """Some rows of the right result, in double precision.

        Args:
            p: the parameters.
            rows: those of the first input ``[r, cols]``, double.
            inputs: all inputs.
            which: indices of the rows ``[r]``.
        """
        raise NotImplementedError

    def check(self, p: ParamValues, kernel: Kernel, result: Any) -> tuple[float, float, str]:
        """See :meth:`Workload.check`."""
        rows, cols = shape_of(p)
        if tuple(result.shape) != (rows, cols):
            return nan, 0.0, f"shape {tuple(result.shape)} instead of {(rows, cols)}"
        which = some_rows(rows, cols).to(result.device)
        ref = self.reference(p, kernel.inputs["x"][which].double(), kernel.inputs, which)
        allowed = self.factor * number_format(str(p["dtype"])).tolerance
        how = "full" if len(which) == rows else f"{len(which)} rows"
        return distance(result[which], ref), allowed, how

    def scout(self, p: ParamValues, size: int = 128) -> dict[str, Value] | None:
        """See :meth:`Workload.scout`: fewer rows."""
        return None if int(p["rows"]) <= size else {**p, "rows": size}


def row_kernel(p: ParamValues, ctx: BuildContext, call: Callable[..., Any], **more: Any) -> Kernel:
    """A kernel of ``call(x, **more)`` that returns a new tensor.

    Args:
        p: the parameters.
        ctx: makes the input.
        call: the operation.
        more: further inputs, passed by name.
    """
    x = ctx.tensor(shape_of(p), str(p["dtype"]))
    return Kernel(lambda: call(x, **more), {"x": x, **more})
