"""A job that no request stands behind."""

from __future__ import annotations

from dataclasses import dataclass

from httpnas.files.job import Outcome, Principal


@dataclass
class FakeJob:
    """Done for nobody in particular, until somebody says otherwise."""

    id: str = "job"
    client: str | None = None
    principal: Principal | None = None
    given_up: bool = False
    client_gone: bool = False

    def outcome(self, error: BaseException) -> Outcome:
        return Outcome("failed")
