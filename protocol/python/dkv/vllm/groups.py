"""Which layers share a block table, and so keep the same number of rows: those that a profile gives about as many."""

from __future__ import annotations

import itertools


def of(layers: int, size: int, shares: list[list[float]] | None = None) -> list[int]:
    """The group of each layer, `size` layers in each.

    shares   [layers][KV heads]: of the mean number of rows, what each is expected to keep; None: neighbours share
    """
    order = list(range(layers))
    if shares is not None:
        order.sort(key=lambda layer: sum(shares[layer]))
        while _swapped(order, size, shares):
            pass
    found = [0] * layers
    for place, layer in enumerate(order):
        found[layer] = place // size
    return found


def _swapped(order: list[int], size: int, shares: list[list[float]]) -> bool:
    """Exchanges layers of two groups where that makes them smaller. Returns whether there were any."""

    def rows(place: int) -> float:
        """Of the group that has this place: its layers keep the most that one of them is given, head by head."""
        first = place - place % size
        return sum(max(heads) for heads in zip(*(shares[layer] for layer in order[first : first + size])))

    any_swapped = False
    for one, other in itertools.combinations(range(len(order)), 2):
        if one // size == other // size:
            continue
        before = rows(one) + rows(other)
        order[one], order[other] = order[other], order[one]
        if rows(one) + rows(other) < before - 1e-9:
            any_swapped = True
        else:
            order[one], order[other] = order[other], order[one]
    return any_swapped
