"""Plans are worked out once for each architecture."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence

from ghn_fast.ghn.config import GHNConfig
from ghn_fast.ghn.place.block_table import BlockTable, make_block_table
from ghn_fast.ghn.place.plan import Plan, plan_for
from ghn_fast.ghn.place.uses import Uses
from ghn_fast.graph import Graph, GraphBatch


class PlanCache:
    """The plans of the architectures that were predicted last; several threads may share it.

    What is known from an architecture and a GHN's configuration alone is worked out once: another
    prediction for a graph of the same digest starts from there.

    Args:
        size: how many are kept.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._entries: OrderedDict[object, tuple[Plan, BlockTable]] = OrderedDict()
        self._lock = threading.Lock()

    def get(
        self, batch: GraphBatch, config: GHNConfig, uses: Sequence[Uses], interpolates: bool
    ) -> tuple[Plan, BlockTable]:
        """The plan of a batch and its block table, made if they are not there."""
        key = (config, interpolates, *(_key(*pair) for pair in zip(batch, uses, strict=True)))
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
                return self._entries[key]
        plan = plan_for(batch, config, uses)
        made = plan, make_block_table(plan, config, interpolates)
        with self._lock:
            self._entries[key] = made
            while len(self._entries) > self.size:
                self._entries.popitem(last=False)
        return made

    def clear(self) -> None:
        """Forgets them all."""
        with self._lock:
            self._entries.clear()

    def __len__(self) -> int:
        return len(self._entries)


def _key(graph: Graph, uses: Uses) -> tuple[object, ...]:
    """All that a plan follows from, but the GHN's configuration."""
    others = (tuple(names.items()) for names in (graph.other, graph.unused))
    ways = tuple(node.way for node in graph.nodes)
    return graph.digest(), graph.heads, ways, *others, *uses.key()
