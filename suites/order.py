"""The order of a run: random, spread, and such that any prefix already covers the space.

Cases fall into strata (what they are, apart from size). Within a stratum they are taken in van der Corput order of
their work, so that the first few span it; strata are interleaved in proportion to their size. A drift of the
machine then looks like noise rather than like a trend along an axis, and a run that stops early leaves a balanced
subset.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

from wattline.case import Case
from wattline.run import PlannedCase

T = TypeVar("T")


def van_der_corput(count: int, flip: int = 0) -> list[int]:
    """The indices 0 .. count-1 in bit-reversed order: every prefix is spread evenly (van der Corput, 1935).

    Args:
        count: how many.
        flip: bits to turn over in every index (a digital shift): another order, spread as evenly.
    """
    bits = max(count - 1, 0).bit_length()
    flip &= (1 << bits) - 1
    order = (int(f"{i:0{bits}b}"[::-1], 2) ^ flip if bits else 0 for i in range(1 << bits))
    return [index for index in order if index < count]


def spread(items: Sequence[T], stratum: Callable[[T], Hashable], work: Callable[[T], float], seed: int) -> list[T]:
    """All items in spread random order.

    Args:
        items: what to order.
        stratum: items of one stratum differ in size only.
        work: their size.
        seed: of the rotation and the interleaving.

    Returns:
        A permutation. A prefix of twice as many items as strata holds of each stratum its share, give or take
        two items and what small strata gain by starting early, and at least one of each.
    """
    strata: dict[Hashable, list[T]] = {}
    for item in items:
        strata.setdefault(stratum(item), []).append(item)
    # Small strata (fewer items than their turn would need) come early: all have begun when each has had a turn.
    begun_by = min(1.0, len(strata) / max(len(items), 1))
    placed: list[tuple[float, int, T]] = []
    for name, members in strata.items():
        # Seeded by the stratum's name, so that a case more elsewhere does not reshuffle this stratum.
        chance = random.Random(f"{seed} {name}")
        members.sort(key=work)
        size = len(members)
        shift = chance.randrange(size)
        for turn, index in enumerate(van_der_corput(size, chance.getrandbits(64))):
            # Anywhere within its turn: an even rhythm could beat with one of the machine's.
            offset = chance.random() * (min(1.0, begun_by * size) if turn == 0 else 1.0)
            position = (turn + offset) / size
            placed.append((position, len(placed), members[(index + shift) % size]))
    placed.sort(key=lambda entry: entry[:2])
    return [item for _, _, item in placed]


def gather(order: Sequence[T], group: Callable[[T], Hashable], seed: int, each: int = 6) -> list[T]:
    """Bring items of one group together within stretches of an order, where changing the group costs time.

    Args:
        order: what to rearrange.
        group: what must be changed between two items, such as a power limit.
        seed: of the order of the groups within a stretch.
        each: items of a group that a stretch holds on average, at most; in short orders fewer, so that there are four
            stretches and the groups do not follow one another once only, as a drift would.

    Returns:
        A permutation that leaves every stretch of ``each`` times as many items as groups where it is: drift still
        looks like noise, and a prefix is as balanced as before, but for the stretch it ends in. Each stretch begins
        with the group that the one before ended with.
    """
    count = len(set(map(group, order)))
    stretch = max(1, min(each, len(order) // max(1, 4 * count))) * count
    chance = random.Random(f"{seed} gather")
    placed: list[T] = []
    last: Hashable = None
    for begin in range(0, len(order), stretch or 1):
        part = order[begin : begin + stretch]
        groups = list(dict.fromkeys(map(group, part)))
        chance.shuffle(groups)
        groups.sort(key=lambda name: bool(placed) and name != last)
        last = groups[-1]
        placed += sorted(part, key=lambda item: groups.index(group(item)))
    return placed


def pair_up(order: Sequence[Case], count: int, cost: Callable[[Case], float]) -> list[PlannedCase]:
    """Mark ``count`` cases as A/A pairs: "a" where the case stands, "b" as a second measurement later on.

    The pairs are chosen among the first cases of the order (so that a run that stops early has them too), one
    from each of ``count`` equal stretches, the cheapest there; "b" follows about a third of the run later.

    Args:
        order: the cases as ordered.
        count: pairs; all cases are paired when there are fewer.
        cost: what a case costs; infinite for one that must not be chosen.
    """
    planned = [PlannedCase(case) for case in order]
    eligible = [i for i, case in enumerate(order) if cost(case) != float("inf")]
    count = min(count, len(eligible))
    if not count:
        return planned
    early = eligible[: max(count, len(eligible) * 2 // 5)]
    chosen = []
    for pair in range(count):
        stretch = early[pair * len(early) // count : (pair + 1) * len(early) // count]
        chosen.append(min(stretch, key=lambda i: cost(order[i])))
    gap = max(1, len(order) // 3)
    later: dict[int, list[PlannedCase]] = {}
    for i in chosen:
        planned[i] = PlannedCase(order[i], "a")
        later.setdefault(min(i + gap, len(order) - 1), []).append(PlannedCase(order[i], "b"))
    return [entry for i, case in enumerate(planned) for entry in (case, *later.get(i, ()))]


def cut(order: Sequence[PlannedCase], most: int) -> list[PlannedCase]:
    """The first ``most`` entries; half of a pair that lost its other half becomes an ordinary case."""
    kept = list(order[:most])
    keys: dict[str, int] = {}
    for entry in kept:
        keys[entry.case.key] = keys.get(entry.case.key, 0) + 1
    return [PlannedCase(e.case) if e.variant and keys[e.case.key] == 1 else e for e in kept]
