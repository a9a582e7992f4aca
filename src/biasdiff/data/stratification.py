"""Groups, and how many are taken of each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

T = TypeVar("T")


def grouped(items: Iterable[T], key: Callable[[T], str]) -> dict[str, list[T]]:
    """Return the items by key, each list in the items' order."""
    groups: dict[str, list[T]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return groups


def proportional_quotas(sizes: Mapping[str, int], count: int) -> dict[str, int]:
    """Share ``count`` among groups in proportion to their sizes, by the largest remainders.

    Args:
        sizes: Members of each group.
        count: To be shared; all members if there are fewer.
    """
    total = sum(sizes.values())
    count = min(count, total)
    exact = {name: count * size / total for name, size in sizes.items()}
    quotas = {name: int(share) for name, share in exact.items()}
    by_remainder = sorted(exact, key=lambda name: (quotas[name] - exact[name], name))
    for name in by_remainder[: count - sum(quotas.values())]:
        quotas[name] += 1
    return quotas


def equal_quotas(sizes: Mapping[str, int], count: int) -> dict[str, int]:
    """Share ``count`` evenly among groups, as far as each has the members."""
    quotas = dict.fromkeys(sizes, 0)
    left = min(count, sum(sizes.values()))
    while left:
        for name, size in sizes.items():
            if left and quotas[name] < size:
                quotas[name] += 1
                left -= 1
    return quotas
