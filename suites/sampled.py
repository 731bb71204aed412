"""Which rows, heads and batches of a large result are compared with a reference."""

from __future__ import annotations


def spread(count: int, wanted: int) -> list[int]:
    """At most ``wanted`` indices below ``count``, evenly spread, the first and the last among them.

    A single one is the last: what comes last has seen all of a sequence, and has passed every edge of a tile.
    """
    if count <= wanted:
        return list(range(count))
    if wanted <= 1:
        return [count - 1][:wanted]
    return sorted({round(i * (count - 1) / (wanted - 1)) for i in range(wanted)})
