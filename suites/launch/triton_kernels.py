"""Triton kernels that do next to nothing, by the number of their arguments. Loaded only where Triton is used."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl


@triton.jit
def none_kernel():  # type: ignore[no-untyped-def]
    """An empty kernel."""
    return


@triton.jit
def one_kernel(a):  # type: ignore[no-untyped-def]
    """Counts its launches."""
    tl.store(a, tl.load(a) + 1)


@triton.jit
def four_kernel(a, b, c, d):  # type: ignore[no-untyped-def]
    """Counts its launches; three arguments are not used."""
    tl.store(a, tl.load(a) + 1)


@triton.jit
def sixteen_kernel(a, b, c, d, e, f, g, h, i, j, k, m, n, o, p, q):  # type: ignore[no-untyped-def]  # noqa: PLR0917
    """Counts its launches; fifteen arguments are not used."""
    tl.store(a, tl.load(a) + 1)


KERNELS: dict[int, Any] = {0: none_kernel, 1: one_kernel, 4: four_kernel, 16: sixteen_kernel}
"""Kernels by the number of their arguments."""
