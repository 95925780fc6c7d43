"""Why an operation was refused, besides what the storage itself says."""

from __future__ import annotations


class Refused(Exception):
    """An operation was refused; its text says why, for people."""


class PreconditionFailed(Refused):
    """The file is not the version that the conditions ask for."""


class AlreadyThere(PreconditionFailed):
    """Something has a name that was to be new."""


class DigestMismatch(Refused):
    """The content does not have the digest that was announced for it."""


class NoLongerWanted(Refused):
    """Nobody waits for this change any more: its client was told to try again."""
