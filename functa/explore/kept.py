"""What was made last is kept: compiled programs by their settings, latents by what they are latents of."""

import collections
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Kept(Generic[Value]):
    """The `most` values that were used last; one thread at a time."""

    def __init__(self, most: int):
        self._most = most
        self._values: collections.OrderedDict[Hashable, Value] = collections.OrderedDict()

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """The value of `key`, made where it is not there; the one unused for longest makes room."""
        if key not in self._values:
            self.put(key, make())
        self._values.move_to_end(key)
        return self._values[key]

    def find(self, key: Hashable) -> Value | None:
        """The value of `key`, None where it is not there."""
        if key in self._values:
            self._values.move_to_end(key)
        return self._values.get(key)

    def put(self, key: Hashable, value: Value) -> None:
        self._values[key] = value
        self._values.move_to_end(key)
        while len(self._values) > self._most:
            self._values.popitem(last=False)
