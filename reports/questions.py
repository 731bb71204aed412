"""The comparisons that a report looks for in a run, and what each of them is read for."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from wattline.reports.lines import BANDWIDTH, SPEED, Quantity, Question

if TYPE_CHECKING:
    import pandas as pd

RATE = Quantity("B/s", lambda rows: 1 / rows["time_s"], "bandwidth")
"""Of rows whose times :func:`each` made seconds per byte."""
PER_LAUNCH = Quantity("s per launch", lambda rows: rows["time_s"], "time of a launch")
PER_PARAMETER = Quantity("s per parameter", lambda rows: rows["time_s"], "time per parameter")
PER_TOKEN = Quantity("s per token", lambda rows: rows["time_s"] / (rows["batch"] * rows["length"]), "time per token")


def _prompts(rows: pd.DataFrame) -> pd.DataFrame:
    # Whole prompts and chunks are told apart by the tokens that were there before.
    return rows.assign(**{"given.tokens before": rows["kv_len"].astype(int) - rows["q_len"].astype(int)})


def _skew(rows: pd.DataFrame) -> pd.DataFrame:
    # A balanced routing is one of skew 0; the other distributions have none.
    return rows[rows["routing"].isin(["balanced", "power_law"])]


def _working_set(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.assign(**{"given.elements": rows["rows"].astype(int) * rows["cols"].astype(int)})


def _having(column: str, value: object) -> Callable[[pd.DataFrame], pd.DataFrame]:
    def keep(rows: pd.DataFrame) -> pd.DataFrame:
        return rows[rows[column] == value]

    return keep


def each(rows: pd.DataFrame, amount: pd.Series[float]) -> pd.DataFrame:
    """Rows whose times are those of one unit of something: cases that move different amounts then compare."""
    count = amount.astype(float)
    return rows.assign(**{name: rows[name] / count for name in ("time_s", "time_lo_s", "time_hi_s")})


def per_byte(rows: pd.DataFrame) -> pd.DataFrame:
    """Loops over working sets, by the bytes of all their passes."""
    return each(rows, rows["work.traffic_bytes"])


def _copies(rows: pd.DataFrame) -> pd.DataFrame:
    # The kind of memory is what is compared: it is the way in which bytes are moved.
    return each(rows, rows["bytes"]).assign(impl=rows["memory"])


def _both_ways(rows: pd.DataFrame) -> pd.DataFrame:
    return each(rows, 2 * rows["bytes"]).assign(impl=rows["memory"])


def _within(rows: pd.DataFrame) -> pd.DataFrame:
    return each(rows, 2 * rows["bytes"])


def _chunked(rows: pd.DataFrame) -> pd.DataFrame:
    pairs = zip(rows["memory"], rows["streams"].astype(int), strict=True)
    names = [f"{memory}, {n} stream{'s' if n > 1 else ''}" for memory, n in pairs]
    chunk = rows["chunk"].where(rows["chunk"] > 0, rows["bytes"])
    return each(rows, rows["bytes"]).assign(impl=names, chunk=chunk)


def _rows_gathered(rows: pd.DataFrame) -> pd.DataFrame:
    return each(rows, rows["rows"] * rows["row_bytes"])


def _blocks_swapped(rows: pd.DataFrame) -> pd.DataFrame:
    return each(rows, rows["blocks"] * rows["block_bytes"])


def _per_launch(rows: pd.DataFrame) -> pd.DataFrame:
    return each(rows, rows["launches"])


def _queued(rows: pd.DataFrame) -> pd.DataFrame:
    names = [f"{impl}, {mode}" for impl, mode in zip(rows["impl"], rows["mode"], strict=True)]
    return each(rows, rows["launches"]).assign(impl=names)


def _by_threads(rows: pd.DataFrame) -> pd.DataFrame:
    # 0 stands for as many threads as there are processors: the fact says how many those were.
    count = rows["fact.threads"] if "fact.threads" in rows.columns else rows["threads"]
    rows = per_byte(rows).assign(threads=rows["threads"].where(rows["threads"] > 0, count))
    return rows[rows["threads"] > 0]


def _parameters(rows: pd.DataFrame) -> pd.DataFrame:
    return each(rows, rows["parameters"])


QUESTIONS: tuple[Question, ...] = (
    Question(
        "prefill", "attention.prefill", "Attention of a prompt: speed against length", "Attention of a prompt",
        "q_len", "queries",
        "Useful operations per second: those of the query-key pairs that the mask lets through, the same for every "
        "implementation, so that a form that computes masked pairs as well shows a lower speed. Forms that write the "
        "whole score matrix fall off where it no longer fits a cache.",
        quantity=SPEED, moving=("kv_len",), prepare=_prompts, unit="queries",
    ),
    Question(
        "kvquant", "attention.kvquant", "A quantised cache: time against bits", "A quantised cache", "bits",
        "bits of a code",
        "Phase read: attention of one new token over the quantised cache, beside native, the same over keys and values "
        "as they are. Phase append: quantising as many tokens, beside a copy of them. Fewer bytes pay only where codes "
        "become numbers on the way, and not by way of memory; what quantising does to the result is in the records "
        "(output_error).",
        unit="bits", log=False,
    ),
    Question(
        "mla_context", "attention.mla", "Latent attention of a new token: time against context",
        "Latent attention of a new token", "kv_len", "tokens of the context",
        "Absorbed: queries are taken to the latents, which all heads share. Expanded: keys and values of all heads "
        "are made from them first, at every step.",
        prepare=_having("q_len", 1), unit="tokens",
    ),
    Question(
        "mla_queries", "attention.mla", "Latent attention: time against queries at a time", "Latent attention",
        "q_len", "queries",
        "The absorbed form does more for each query-key pair, the expanded one makes keys and values once for all "
        "queries: with many queries it is the lesser work.",
        unit="queries",
    ),
    Question(
        "linear", "attention.linear", "Attention without softmax: time per token against length", "Linear attention",
        "length", "tokens of a sequence",
        "Time of one token. The quadratic form grows with the length; blocks with a running state between them stay "
        "flat; cumulative sums write a matrix for each token.",
        quantity=PER_TOKEN, moving=("block",), unit="tokens",
    ),
    Question(
        "sparse_window", "attention.sparse", "Attention over a window: time against its width",
        "Attention over a sliding window", "window", "keys of the window",
        "A mask leaves dense attention its full cost, whatever the window; gathering pays for what is seen and for "
        "the gathering. They meet where the window is a fair share of the context.",
        prepare=_having("pattern", "sink_window"), unit="keys",
    ),
    Question(
        "sparse_blocks", "attention.sparse", "Attention over chosen blocks: time against their number",
        "Attention over the best blocks", "keep", "blocks kept for each block of queries",
        "As above, over the blocks that each block of queries keeps.",
        prepare=_having("pattern", "block_topk"), unit="blocks",
    ),
    Question(
        "sparse_budget", "attention.sparse", "Attention over the keys that eviction left: time against the budget",
        "Attention over an eviction budget", "budget", "keys kept",
        "Mask: all keys are read. Gather: the kept ones are brought together at each step. Compact: they lie together "
        "already, as after eviction.",
        prepare=_having("pattern", "budget"), unit="keys",
    ),
    Question(
        "merging", "attention.merge", "Merging partial attentions: time against the number of parts",
        "Merging of partial attentions", "shards", "parts",
        "Phase merge: the merging alone. Phase shards: attention over each part and the merging, beside the same "
        "attention undivided. What lies between these two is the price of splitting.",
        unit="parts",
    ),
    Question(
        "softmax", "softmax.rows", "Softmax: bandwidth beside a copy of the same working set", "Softmax", "cols",
        "elements of a row",
        "Bytes read and written once, per second, at one number of elements in all. No form can beat the copy; one "
        "that passes over memory two or three times falls behind it by as much where rows outgrow the caches.",
        quantity=BANDWIDTH, moving=("rows",), prepare=_working_set, beside=("elementwise.copy",), unit="elements",
    ),
    Question(
        "moe", "gemm.moe", "Mixture of experts: time against tokens", "A layer of experts", "tokens", "tokens",
        "Torch: the experts one after the other. Grouped: tokens sorted by expert, one grouped product. Padded: every "
        "expert as many tokens as the busiest. With few tokens the weights of the experts in use are read for hardly "
        "any arithmetic.",
        unit="tokens",
    ),
    Question(
        "moe_skew", "gemm.moe", "Mixture of experts: time against the skew of the routing", "A skewed routing",
        "skew", "exponent of the power law; 0: balanced",
        "The same useful operations, spread more and more unevenly over the experts. Padding pays for the busiest "
        "expert as often as there are experts.",
        moving=("routing",), prepare=_skew, unit="", log=False,
    ),
    Question(
        "lowrank", "gemm.lowrank", "Low-rank adapters: time against adapters in one batch", "Adapters in one batch",
        "adapters", "different adapters",
        "Two-step: adapter by adapter. Gathered: every row with a copy of its adapter. Grouped: rows sorted by "
        "adapter. Merged: the one adapter added to the base beforehand, which is the floor.",
        unit="adapters",
    ),
    Question(
        "conv_long", "conv.long", "Long convolutions: time against length", "Convolution along a sequence", "length",
        "elements of a sequence",
        "Direct: every tap multiplied, quadratic where the filter is as long as the sequence. Fft: the transform of "
        "the library. Matrix: the transform as products with small matrices, more operations in faster units.",
        unit="elements",
    ),
    Question(
        "fusion", "fusion.chain", "Chains of element-wise operations: time against their number", "A fused chain",
        "length", "operations in a row",
        "Eager: each operation reads and writes memory. Graph: the same kernels without the launches between them. "
        "Compile: one kernel. A flat line is a chain whose arithmetic is free.",
        unit="operations",
    ),
    Question(
        "h2d", "offload.h2d", "Copies to the device: bandwidth against size", "Copies to the device", "bytes", "bytes",
        "Bytes from the host to the device, by the kind of host memory. Small copies cost their latency; large ones "
        "show the link: all of it from page-locked memory, less where the driver must stage ordinary pages or migrate "
        "them.",
        quantity=RATE, moving=("memory",), prepare=_copies, binary=True,
    ),
    Question(
        "d2h", "offload.d2h", "Copies to the host: bandwidth against size", "Copies to the host", "bytes", "bytes",
        "Bytes from the device to the host, by the kind of host memory.",
        quantity=RATE, moving=("memory",), prepare=_copies, binary=True,
    ),
    Question(
        "bidirectional", "offload.bidirectional", "Copies both ways at once: bandwidth against size",
        "Copies both ways at once", "bytes", "bytes of each direction",
        "The sum of both directions, which a link with a lane for each carries at once; each of them is in the records "
        "(h2d_bytes_per_s, d2h_bytes_per_s).",
        quantity=RATE, moving=("memory",), prepare=_both_ways, binary=True,
    ),
    Question(
        "d2d", "offload.d2d", "Copies within the device: bandwidth against size", "Copies within the device", "bytes",
        "bytes", "Bytes read and bytes written, per second.", quantity=RATE, prepare=_within, binary=True,
    ),
    Question(
        "copy_chunks", "offload.h2d", "Copies to the device in pieces: bandwidth against the size of a piece",
        "Copies in pieces", "chunk", "bytes of a piece",
        "The same bytes in one copy after another, dealt to streams. Pieces cost a latency each, which further streams "
        "hide in part.",
        quantity=RATE, moving=("memory", "streams"), prepare=_chunked, binary=True,
    ),
    Question(
        "gather", "offload.gather", "Gathering rows from the host: bandwidth against the bytes of a row",
        "Gathering rows", "row_bytes", "bytes of a row",
        "Copy: the CPU brings the rows together, then one copy. Zero-copy: a kernel of the device reads them over the "
        "link. Host: the CPU's part alone. Short rows waste the rest of the lines that they lie in.",
        quantity=RATE, prepare=_rows_gathered, binary=True,
    ),
    Question(
        "swap", "offload.swap", "Blocks of a KV cache: bandwidth out and in against the bytes of a block",
        "Blocks of a cache", "block_bytes", "bytes of a block",
        "Block: a copy for each of the scattered blocks, which costs a latency each. Coalesced: packed on one side, "
        "moved in one copy and spread on the other, which moves every byte through memory twice more. Small blocks "
        "want packing; where a block's own copy takes long beside its latency, packing is wasted.",
        quantity=RATE, prepare=_blocks_swapped, binary=True,
    ),
    Question(
        "pinned_alloc", "offload.pinned_alloc", "Page-locked buffers: time of an allocation against its size",
        "Page-locking", "bytes", "bytes of a buffer",
        "Every page must be made, cleared and locked, so that the time grows with the size: buffers are made once and "
        "kept.",
        binary=True,
    ),
    Question(
        "adam", "offload.optimizer", "Adam: time of a parameter against their number", "Adam", "parameters",
        "parameters",
        "A step's time for each parameter. It rises where states no longer fit a cache, and is then the time that 28 "
        "bytes take to memory and back.",
        quantity=PER_PARAMETER, prepare=_parameters, unit="parameters",
    ),
    Question(
        "stream", "host.stream", "STREAM: bandwidth of the host against the working set", "STREAM's loops", "bytes",
        "bytes of all arrays",
        "Every pass over the arrays counted. Sets that a cache holds are read faster than memory allows; the flat end "
        "is main memory.",
        quantity=RATE, prepare=per_byte, binary=True,
    ),
    Question(
        "stream_threads", "host.stream", "STREAM: bandwidth of the host against threads", "STREAM by threads",
        "threads", "threads",
        "How many threads it takes to use what memory gives. A flat line is a memory that one thread fills.",
        quantity=RATE, prepare=_by_threads, unit="threads",
    ),
    Question(
        "launch_arguments", "launch.overhead", "Empty calls: time against arguments", "An empty call", "arguments",
        "arguments",
        "Time of one launch of something that does next to nothing. Python: the floor under the others. What rises "
        "with the arguments is spent on unpacking and checking them.",
        quantity=PER_LAUNCH, prepare=_per_launch, unit="arguments", log=False,
    ),
    Question(
        "launch_row", "launch.overhead", "Launches in a row: time of one against their number", "Launches in a row",
        "launches", "launches",
        "Sync: each waited for. Async: all queued, then waited for. Graph: captured once and launched as one.",
        quantity=PER_LAUNCH, moving=("mode",), prepare=_queued, unit="launches",
    ),
)  # fmt: skip
