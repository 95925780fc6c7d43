"""Everything that one file of ``--auth`` configures, as it is read at one moment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from httpnas.access.admission import Subject
from httpnas.access.certificates import ClientCertificates
from httpnas.access.jwts import Issuer
from httpnas.access.links import Grant, Holder, LinkKey
from httpnas.access.rules import ANONYMOUS, AUTHENTICATED, Rules
from httpnas.access.tokens import Tokens
from httpnas.files.job import Principal

#: What is different when a file is: device, inode, size, and times of change in nanoseconds.
Stamp = tuple[int, ...]


def stamp_of(status: os.stat_result) -> Stamp:
    """Return the stamp of a file."""
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def stamp_at(path: str) -> Stamp | None:
    """Return the stamp of the file *path*, None when it cannot be looked at."""
    try:
        return stamp_of(os.stat(path))
    except (OSError, ValueError):
        return None


@dataclass(frozen=True, eq=False)
class Policy:
    """Who there is, and what he may do.

    :ivar realm: what the credentials are for, as clients show it (RFC 9110 section 11.5).
    :ivar groups: the groups of each principal, besides those that a token brings.
    :ivar hashes: of passwords, by user.
    :ivar issuers: whose tokens count, by how they call themselves.
    :ivar link_keys: for links; the first signs.
    :ivar certificates: whom certificates of clients are for, None if they do not count.
    :ivar longest_link: how many seconds a link may count.
    :ivar stamps: of all files that were read, by path, to see when one changes.
    """

    realm: str
    rules: Rules
    groups: Mapping[str, frozenset[str]]
    hashes: Mapping[str, str]
    tokens: Tokens
    issuers: Mapping[str, Issuer]
    certificates: ClientCertificates | None
    link_keys: tuple[LinkKey, ...]
    longest_link: int
    stamps: Mapping[str, Stamp | None]
    _subjects: dict[tuple[str, str], Subject] = field(default_factory=dict)

    @property
    def challenges(self) -> tuple[str, ...]:
        """A challenge for each scheme that works, as values of WWW-Authenticate."""
        basic = f'Basic realm="{self.realm}", charset="UTF-8"'
        bearer = f'Bearer realm="{self.realm}"'
        takes_bearer = bool(self.tokens or self.issuers)
        # A 401 has to have one (RFC 9110 section 15.5.2), even if there is nobody to be.
        return (basic,) * bool(self.hashes) + (bearer,) * (takes_bearer or not self.hashes)

    def known(self, name: str, kind: str) -> Subject:
        """Return the subject of a principal that this policy knows by name; it is kept."""
        subject = self._subjects.get((name, kind))
        if subject is None:
            subject = self._subjects[name, kind] = self.subject(Principal(name, kind))
        return subject

    def anonymous(self) -> Subject:
        """Return the subject that has no credentials."""
        return self.known(ANONYMOUS, ANONYMOUS)

    def principal(self, principal: Principal) -> Principal:
        """Return *principal* with all groups that it is in."""
        groups = principal.groups | self.groups.get(principal.name, frozenset())
        if principal.name != ANONYMOUS:
            groups |= {AUTHENTICATED}
        return Principal(principal.name, principal.kind, groups)

    def subject(self, principal: Principal) -> Subject:
        """Return *principal* with all its groups and the rules about it."""
        whole = self.principal(principal)
        rules = self.rules.of(whole)
        return Subject(whole.name, whole.kind, whole.groups, None, rules, self.challenges)

    def holder(self, grant: Grant, signer: Principal) -> tuple[Holder, float]:
        """Return who uses a link, and until when, in seconds since the epoch.

        That is in the past when its *signer* is not there any more.
        """
        until = float(grant.expires)
        if signer.kind == "token":
            until = min(until, self.tokens.expiry(signer.name))
        elif signer.kind == "password" and signer.name not in self.hashes:
            until = 0.0
        whole = self.principal(signer)
        rules, most = self.rules.of(whole), grant.most
        holder = Holder(whole.name, "link", whole.groups, most, rules, self.challenges, grant)
        return holder, until
