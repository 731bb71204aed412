"""Work of what is built on collectives: algorithms, pairs, overlap, codes, strided data, experts, stragglers.

Definitions of S and of the bytes over the busiest link are those of :mod:`wattline.workmodels.collectives`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wattline.formats import number_format
from wattline.work import Work
from wattline.workmodels.collectives import busbw_factor, collective_model, rounds
from wattline.workmodels.gemm import dense


def algorithm(p: Mapping[str, Any]) -> Work:
    """``collectives.algorithm``: that of an all-reduce, whatever the algorithm sends, so that speeds compare."""
    return collective_model("collectives.all_reduce")(p)


def p2p_matrix(p: Mapping[str, Any]) -> Work:
    """``collectives.p2p_matrix``: every rank sends ``bytes`` to each of the ``n - 1`` others and gets as much."""
    others = 1.0 * p["world_size"] - 1.0
    moved = others * p["bytes"]
    return Work(
        bytes_read={"device": moved}, bytes_written={"device": moved}, messages={"fabric": others},
        link_bytes={"fabric": moved},
    )  # fmt: skip


def overlap(p: Mapping[str, Any]) -> Work:
    """``collectives.overlap``: a dense product, and a collective of fp32 beside it."""
    name = str(p.get("collective", "all_reduce"))
    product = dense({"batch": 1, "m": p["m"], "n": p["n"], "k": p["k"], "dtype": p.get("dtype", "fp32")})
    return product + collective_model(f"collectives.{name}")(p)


def compressed(p: Mapping[str, Any]) -> Work:
    """``collectives.compressed``: the gradient is read and the sum is written.

    No bytes over the link bound it: what must be sent is what a code is there to change. A dense sum would send
    ``details["dense_link_bytes"]``.
    """
    size, ranks = 1.0 * p["bytes"], p["world_size"]
    return Work(
        bytes_read={"device": size}, bytes_written={"device": size}, messages={"fabric": rounds(ranks)},
        details={"dense_link_bytes": busbw_factor("all_reduce", ranks) * size},
    )  # fmt: skip


def strided(p: Mapping[str, Any]) -> Work:
    """``collectives.strided``: the elements that are sent are read, sent and written once.

    ``count block`` of them; three faces of ``(count - block)^2 block`` in ``halo3d``.
    """
    count, block = 1.0 * p["count"], 1.0 * p["block"]
    elements = 3.0 * (count - block) ** 2 * block if p.get("layout") == "halo3d" else count * block
    size = elements * number_format(str(p.get("dtype", "fp32"))).bytes
    link = size * busbw_factor("send_recv", p["world_size"])
    return Work(
        bytes_read={"device": size}, bytes_written={"device": size}, messages={"fabric": 1.0 + 0.0 * size},
        link_bytes={"fabric": link},
    )  # fmt: skip


def moe(p: Mapping[str, Any]) -> Work:
    """``collectives.moe``: every token goes to ``top_k`` experts and back, and one in n is its own rank's.

    Tokens are read once and sums written once; of the copies that must move a rank sends and receives, on average over
    ranks (the busiest has no less), ``tokens top_k (n - 1) / n``, twice.
    """
    row = 1.0 * p["hidden"] * number_format(str(p.get("dtype", "bf16"))).bytes
    tokens, ranks = 1.0 * p["tokens"] * row, p["world_size"]
    link = 2.0 * tokens * p.get("top_k", 2) * busbw_factor("all_to_all", ranks)
    return Work(
        bytes_read={"device": tokens}, bytes_written={"device": tokens}, messages={"fabric": 2.0 * rounds(ranks)},
        link_bytes={"fabric": link},
    )  # fmt: skip


def stragglers(p: Mapping[str, Any]) -> Work:
    """``collectives.stragglers``: a sum over all ranks and a message to the next, both of ``bytes``; four products."""
    edge = p.get("work", 192)
    total = collective_model("collectives.all_reduce")(p) + collective_model("collectives.send_recv")(p)
    return total + dense({"batch": 4, "m": edge, "n": edge, "k": edge, "dtype": "fp32"})
