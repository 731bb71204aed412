"""Where the shapes of attention come from: heads of public models over lengths, and points for learning."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from wattline.errors import ParamError, UsageError
from wattline.ranges import parse_range
from wattline.suites.lowdiscrepancy import log_uniform, points
from wattline.units import parse_number

Sizes = str | int | Sequence[str | int]
ShapeSet = dict[str, Any]


def sizes_of(given: Sizes) -> list[int]:
    """Integers from a number, a range or a list of both."""
    if isinstance(given, str | int):
        return parse_range(given)
    return list(dict.fromkeys(v for item in given for v in parse_range(item)))


def heads_of(name: str, tp: int = 1) -> ShapeSet:
    """Heads of a public model on one of ``tp`` tensor-parallel ranks; key-value heads are replicated where there are
    fewer than ranks (Shoeybi et al., "Megatron-LM", arXiv:1909.08053).

    Raises:
        UnknownNameError: no such model.
        UsageError: it has latent attention, which is an operation of its own, or its heads are no multiple of ``tp``.
    """
    from wattline.suites.models import get_model

    model = get_model(name)
    if model.kv_rank:
        raise UsageError(f"{name} has multi-head latent attention", todo="measure it as attention.mla")
    if tp < 1 or model.heads % tp:
        raise UsageError(
            f"{name} cannot be sliced {tp} ways", why=f"it has {model.heads} heads",
            todo="choose a degree that divides them",
        )  # fmt: skip
    return {"heads": model.heads // tp, "kv_heads": max(1, model.kv_heads // tp), "head_dim": model.head_dim}


def prompts(
    models: Sequence[str] | str = ("llama-3-8b",), lengths: Sizes = "128:16384:x2", batch: Sizes = 1, tp: Sizes = 1
) -> Iterator[ShapeSet]:
    """Whole prompts: as many queries as keys.

    Args:
        models: names in the model table.
        lengths: tokens of a prompt.
        batch: prompts at a time.
        tp: tensor-parallel degrees.
    """
    for shape, length, many in _grid(models, lengths, batch, tp):
        yield {**shape, "batch": many, "q_len": length, "kv_len": length}


def chunks(
    models: Sequence[str] | str = ("llama-3-8b",), chunk: Sizes = "256,1024", contexts: Sizes = "1024:16384:x4",
    batch: Sizes = 1, tp: Sizes = 1,
) -> Iterator[ShapeSet]:  # fmt: skip
    """The last ``chunk`` tokens of a longer prompt, whose earlier ones are in the cache."""
    for shape, length, many in _grid(models, contexts, batch, tp):
        for size in sizes_of(chunk):
            if size <= length:
                yield {**shape, "batch": many, "q_len": size, "kv_len": length}


def tokens(
    models: Sequence[str] | str = ("llama-3-8b",), contexts: Sizes = "128:16384:x2", batch: Sizes = "1,8,64",
    tp: Sizes = 1,
) -> Iterator[ShapeSet]:  # fmt: skip
    """One new token for each sequence of a batch, over a cache of ``contexts`` tokens."""
    for shape, length, many in _grid(models, contexts, batch, tp):
        yield {**shape, "batch": many, "kv_len": length}


def _grid(
    models: Sequence[str] | str, lengths: Sizes, batch: Sizes, tp: Sizes
) -> Iterator[tuple[ShapeSet, int, int]]:
    for name in (models,) if isinstance(models, str) else models:
        for degree in sizes_of(tp):
            for many in sizes_of(batch):
                for length in sizes_of(lengths):
                    yield heads_of(name, degree), length, many


def random(
    count: int = 24, *, seed: int = 0, lo: int = 16, hi: int = 4096, heads: Sizes = "4,8,16,32",
    groups: Sizes = "1,4,8", head_dim: Sizes = "64,128", max_batch: int = 8, decode: bool = False,
    max_pairs: float | str = "64M", max_keys: float | str = "256K",
) -> Iterator[ShapeSet]:  # fmt: skip
    """Points spread log-uniformly over lengths and batch, any prefix of which covers the space.

    Args:
        count: how many.
        seed: of the sequence.
        lo, hi: least and most keys.
        heads: query heads to choose from.
        groups: query heads that share a key head, to choose from.
        head_dim: widths to choose from.
        max_batch: most sequences.
        decode: only ``kv_len`` and no ``q_len``; otherwise queries are log-uniform from 1 to the keys.
        max_pairs: points with more query-key pairs, over all heads, are passed over; as are those with
        max_keys: more keys, over all sequences.

    Raises:
        ParamError: limits that hardly a point meets.
    """
    most_pairs, most_keys = parse_number(max_pairs), parse_number(max_keys)
    choices = [sizes_of(heads), sizes_of(groups), sizes_of(head_dim)]
    found = 0
    for u in points(6, 1000 * count, seed=seed):
        many = round(log_uniform(u[0], 1, max_batch))
        keys = round(log_uniform(u[1], lo, hi))
        queries = 1 if decode else round(log_uniform(u[2], 1, keys))
        number, group, width = (values[int(part * len(values))] for values, part in zip(choices, u[3:], strict=True))
        if number % group or many * number * queries * keys > most_pairs or many * keys > most_keys:
            continue
        shape = {"batch": many, "kv_len": keys, "heads": number, "kv_heads": number // group, "head_dim": width}
        yield shape if decode else {**shape, "q_len": queries}
        found += 1
        if found == count:
            return
    raise ParamError(
        f"found only {found} of {count} random shapes within the limits",
        todo="raise max_pairs or max_keys, or lower hi",
    )


SOURCES: Mapping[str, Callable[..., Iterator[ShapeSet]]] = {
    "prompts": prompts, "chunks": chunks, "tokens": tokens, "random": random,
}  # fmt: skip
