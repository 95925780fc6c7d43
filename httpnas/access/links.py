"""Links: a URL that carries a right, signed by somebody who has it (HMAC-SHA-256, RFC 2104).

What a link grants stands in it, and is signed as it stands. It counts as long as the key is there
with which it was signed, and as long as the rules still give its signer what it grants.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from httpnas.access.admission import Subject
from httpnas.access.errors import LinkRefused
from httpnas.access.rules import Right
from httpnas.files.job import Principal
from httpnas.files.points import Intent

#: What a link for a method grants; of one for creating, only the first right.
RIGHTS: Mapping[str, tuple[Right, ...]] = {
    "GET": (Right.READ, Right.LIST),
    "POST": (Right.CREATE, Right.REPLACE),
    "PUT": (Right.APPEND,),
    "DELETE": (Right.DELETE,),
}
_LINK = re.compile(rb"([A-Za-z0-9-]{1,64})\.([A-Za-z0-9_-]{1,6000})\.([A-Za-z0-9_-]{43})\Z")


@dataclass(frozen=True, slots=True)
class Grant:
    """What a link is for.

    :ivar method: of the requests that may use it; one for GET is for HEAD as well.
    :ivar name: of a file or folder.
    :ivar below: whether it is for all names below that one too.
    :ivar expires: in seconds since the epoch.
    :ivar create_only: whether it replaces nothing.
    :ivar most: how many bytes a body may have, None for any number.
    """

    method: str
    name: bytes
    below: bool
    expires: int
    create_only: bool = False
    most: int | None = None

    @property
    def rights(self) -> tuple[Right, ...]:
        """The rights that it grants, as far as its signer has them."""
        rights = RIGHTS[self.method]
        return rights[:1] if self.create_only else rights

    def is_about(self, name: bytes) -> bool:
        """Tell whether it is for *name*."""
        if name == self.name:
            return True
        return self.below and (not self.name or name.startswith(self.name + b"/"))


@dataclass(frozen=True, eq=False)
class Holder(Subject):
    """Who uses a link: its signer, as far as it grants something."""

    grant: Grant | None = None

    def allows(self, right: Right, intent: Intent) -> bool:
        """Tell whether *right* is granted for *intent*, and its signer still has it."""
        grant = self.grant
        if grant is None or right not in grant.rights or not grant.is_about(intent.name):
            return False
        return super().allows(right, intent)


@dataclass(frozen=True, slots=True)
class LinkKey:
    """A key for links.

    :ivar id: what a link calls it.
    """

    id: str
    secret: bytes


def new_secret() -> str:
    """Return a secret for a key, as the file has it."""
    return base64.b64encode(secrets.token_bytes(32)).decode()


def sign(key: LinkKey, grant: Grant, signer: Principal) -> str:
    """Return the text of a link by which *signer* grants *grant*."""
    members = {
        "method": grant.method,
        "name": grant.name.decode(),
        "below": grant.below,
        "expires": grant.expires,
        "create_only": grant.create_only,
        "most": grant.most,
        "signer": signer.name,
        "kind": signer.kind,
        # Those of the file are looked up when the link is used.
        "groups": sorted(group for group in signer.groups if re.search("[:/]", group)),
    }
    text = json.dumps(members, ensure_ascii=False, separators=(",", ":")).encode()
    signed = f"{key.id}.{_encoded(text)}"
    return f"{signed}.{_encoded(_mac(key, signed.encode()))}"


def verify(keys: Sequence[LinkKey], link: bytes, method: bytes) -> tuple[Grant, Principal]:
    """Return what *link* grants, and who has signed it.

    :param keys: any of which may have signed it.
    :param method: of the request that uses it.
    :raises LinkRefused: when it does not count.
    """
    parts = _LINK.match(link)
    key = parts and next((key for key in keys if key.id.encode() == parts[1]), None)
    if not parts or key is None:
        raise LinkRefused("This is no link, or its key does not count any more.")
    # Texts are compared, not the bytes that they stand for: several texts stand for the same.
    mac = _encoded(_mac(key, link.rpartition(b".")[0])).encode()
    if not hmac.compare_digest(mac, parts[3]):
        raise LinkRefused("The link was changed.")
    members = json.loads(base64.urlsafe_b64decode(parts[2] + b"=="))
    grant = Grant(
        members["method"],
        members["name"].encode(),
        members["below"],
        members["expires"],
        members["create_only"],
        members["most"],
    )
    if time.time() >= grant.expires:
        raise LinkRefused("The link has expired.")
    if (b"GET" if method == b"HEAD" else method) != grant.method.encode():
        raise LinkRefused(f"The link is for {grant.method}.")
    groups = frozenset(members["groups"])
    return grant, Principal(members["signer"], members["kind"], groups)


def secret_of(text: str) -> bytes | None:
    """Return the bytes of a secret in base64, None when it is none or has fewer than 32."""
    try:
        secret = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return secret if len(secret) >= 32 else None


def _mac(key: LinkKey, signed: bytes) -> bytes:
    return hmac.new(key.secret, signed, hashlib.sha256).digest()


def _encoded(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()
