"""A folder of which a client sees only some entries."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from httpnas.storage.listing import Entry, Folder, Order, Place


class Shown(Folder):
    """The open *folder*, without the entries that are not to be shown.

    It takes over what *folder* has, and is closed with it.

    :param shows: tells of the last component of a name whether it is shown.
    """

    def __init__(self, folder: Folder, shows: Callable[[bytes], bool]) -> None:
        self.__dict__.update(vars(folder))
        self._shows = shows

    def places(self, order: Order, after: Place | None, most: int) -> Iterator[Place]:
        """Yield those places of :meth:`Folder.places` that are shown."""
        return (place for place in super().places(order, after, most) if self._shows(place.name))

    def names(self, after: bytes = b"", descending: bool = False) -> Iterator[bytes]:
        """Yield those names of :meth:`Folder.names` that are shown."""
        return (name for name in super().names(after, descending) if self._shows(name))

    def entry(self, name: bytes) -> Entry | None:
        """Return what *name* is now, or None also when it is not shown."""
        return super().entry(name) if self._shows(name) else None
