"""Both sides of pairs, so chosen that neither a group word nor a claim tells the class.

A pair is an edge from the group word of its twin to that of its stereotype sentence: "women cannot
park" is the edge men → women, "men cannot cook" the edge women → men. Where the chosen edges form
cycles, every group word is as often on the one side as on the other, and since both sides of a pair
are taken, so is every other word: only which group meets which claim is left to tell.
"""

from __future__ import annotations

import random
from collections import defaultdict, deque
from collections.abc import Sequence

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from biasdiff.data.draws import shipped_draw
from biasdiff.data.mixtures.rows import MixtureRow, pair_row, with_group
from biasdiff.data.probe import ProbePair
from biasdiff.data.twins import difference, without_possessive
from biasdiff.errors import DataError

Edge = tuple[str, str]


def crossed(size: int, seed: int) -> list[MixtureRow]:
    """Draw ``size`` rows, half of them biased, from the rest draw.

    Whole cycles are taken, in an order drawn from the seed; ``group`` names the cycle a row belongs
    to, so that a division by group keeps the balance within each part.

    Raises:
        DataError: If the rest draw holds too few pairs in cycles.
    """
    pairs = [p for p in shipped_draw("rest") if p.stereo_antistereo == "stereo"]
    cycles = balanced_cycles([group_words(p) for p in pairs])
    random.Random(seed).shuffle(cycles)
    chosen = _of_total(cycles, size // 2)
    if chosen is None or size % 2:
        raise DataError(
            f"crossed: {size} rows asked for",
            expected=f"an even number up to about {2 * sum(map(len, cycles))}, which the rest draw "
            "holds in cycles",
            remedy="ask for fewer",
        )
    return [
        with_group(pair_row(pairs[index], text, truth), f"cycle-{number}")
        for number, cycle in enumerate(chosen)
        for index in cycle
        for text, truth in ((pairs[index].sent_more, 1), (pairs[index].sent_less, 0))
    ]


def _of_total(cycles: Sequence[list[int]], total: int) -> list[list[int]] | None:
    """Choose cycles that have ``total`` edges together, None if that cannot be.

    Cycles of odd length are taken two at a time, after a single one where the total is odd.
    """
    odd = [cycle for cycle in cycles if len(cycle) % 2]
    if total % 2 and not odd:
        return None
    first = [odd.pop()] if total % 2 else []
    units = [[cycle] for cycle in cycles if len(cycle) % 2 == 0]
    units += [[one, other] for one, other in zip(odd[::2], odd[1::2], strict=False)]
    chosen, left = first, total - sum(map(len, first))
    for unit in units:
        length = sum(map(len, unit))
        if length <= left:
            chosen, left = chosen + unit, left - length
    return chosen if left == 0 else None


def group_words(pair: ProbePair) -> Edge:
    """Return the differing words of the twin and of the stereotype sentence, each as one string."""
    found = difference(pair)
    less, more = (
        " ".join(sorted(without_possessive(word) for word in words))
        for words in (found.less, found.more)
    )
    return less, more


def balanced_cycles(edges: Sequence[Edge]) -> list[list[int]]:
    """Divide a largest balanced set of edges into cycles, the shortest first.

    A set of edges is balanced where every node has as many incoming as outgoing ones. The largest
    such set is a maximum circulation with unit capacities: max 1ᵀx, A x = 0, 0 ≤ x ≤ 1, with A the
    incidence matrix, whose basic solutions are whole numbers because A is totally unimodular.

    Args:
        edges: (tail, head) of each edge; several may be equal.

    Returns:
        Cycles as lists of edge numbers; no edge is in two.
    """
    usable = [i for i, (tail, head) in enumerate(edges) if tail != head]
    if not usable:
        return []
    nodes = {name: n for n, name in enumerate(sorted({x for i in usable for x in edges[i]}))}
    rows = np.array([[nodes[edges[i][0]], nodes[edges[i][1]]] for i in usable]).T.ravel()
    columns = np.tile(np.arange(len(usable)), 2)
    signs = np.repeat([-1.0, 1.0], len(usable))
    incidence = coo_array((signs, (rows, columns)), shape=(len(nodes), len(usable))).tocsr()
    solution = milp(
        -np.ones(len(usable)),
        constraints=LinearConstraint(incidence, 0, 0),
        bounds=Bounds(0, 1),
    )
    chosen = [usable[i] for i in np.flatnonzero(np.asarray(solution.x) > 0.5)]
    return _decompose(edges, chosen)


def _decompose(edges: Sequence[Edge], chosen: Sequence[int]) -> list[list[int]]:
    """Take cycles out of a balanced set of edges, those of two edges first."""
    leaving: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for index in chosen:
        tail, head = edges[index]
        leaving[tail][head].append(index)
    cycles: list[list[int]] = []
    for index in chosen:
        tail, head = edges[index]
        if index in leaving[tail][head] and leaving[head][tail]:
            leaving[tail][head].remove(index)
            cycles.append([index, leaving[head][tail].pop()])
    for index in chosen:
        tail, head = edges[index]
        if index in leaving[tail][head]:
            leaving[tail][head].remove(index)
            cycles.append([index, *_shortest_path(leaving, head, tail)])
    return cycles


def _shortest_path(leaving: dict[str, dict[str, list[int]]], start: str, goal: str) -> list[int]:
    """Take the edges of a shortest path out of a balanced rest, where there always is one."""
    before: dict[str, str] = {}
    queue = deque([start])
    while goal not in before:
        node = queue.popleft()
        for other in sorted(leaving[node]):
            if leaving[node][other] and other not in before and other != start:
                before[other] = node
                queue.append(other)
    path: list[int] = []
    node = goal
    while node != start:
        path.append(leaving[before[node]][node].pop())
        node = before[node]
    return path[::-1]
