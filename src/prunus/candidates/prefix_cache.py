"""What passed a boundary, kept for the next candidate that agrees up to there."""

from collections import OrderedDict
from collections.abc import Hashable

from prunus.candidates.prefix import Passed


class PrefixCache:
    """Activations within a memory limit, in groups that are thrown away whole, oldest use first.

    A group that does not fit keeps what fits: the batches that are missing are computed again.

    Args:
        limit_bytes: Most that is kept; 0 keeps nothing.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._used = 0
        self._groups: OrderedDict[Hashable, dict[Hashable, Passed]] = OrderedDict()
        self.hits = 0

    def __len__(self) -> int:
        """Entries kept."""
        return sum(map(len, self._groups.values()))

    def get(self, group: Hashable, item: Hashable) -> Passed | None:
        """What is kept under a name, or None."""
        found = self._groups.get(group, {}).get(item)
        if found is not None:
            self._groups.move_to_end(group)
            self.hits += 1
        return found

    def put(self, group: Hashable, item: Hashable, passed: Passed) -> None:
        """Keep something, if it fits beside what else its group holds."""
        own = self._groups.get(group, {})
        if item in own:
            return
        size = passed.nbytes
        if sum(p.nbytes for p in own.values()) + size > self._limit:
            return
        while self._used + size > self._limit:
            oldest = next(key for key in self._groups if key != group)
            self._used -= sum(p.nbytes for p in self._groups.pop(oldest).values())
        self._groups.setdefault(group, {})[item] = passed
        self._groups.move_to_end(group)
        self._used += size
