"""JSON Web Tokens of others (RFC 7519): of a Kubernetes cluster, or of an OpenID provider.

A token says itself who has issued it and by which key. Nothing that it says is believed until the
key, which the issuer has published (a JWK Set, RFC 7517), has verified it: not even its algorithm,
which has to be one that fits the key (RFC 8725 section 3.1).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jwt

from httpnas.files.job import Principal

#: Algorithms by type of key. None of them is symmetric: with such, a public key would be a secret.
ALGORITHMS: Mapping[str, tuple[str, ...]] = {
    "RSA": ("RS256", "RS384", "RS512"),
    "EC": ("ES256", "ES384", "ES512"),
    "OKP": ("EdDSA",),
}
#: Seconds by which clocks may differ.
LEEWAY = 30
#: The most groups of a token that count.
_MOST_GROUPS = 200
_REQUIRED = ["aud", "iss", "exp", "nbf"]
#: RFC 1123 labels; a service account may have dots in its name.
_ACCOUNT = re.compile(r"system:serviceaccount:([a-z0-9-]{1,63}:[a-z0-9.-]{1,253})\Z")
_NAME = re.compile(r"[!-~\u00a1-\U0010ffff]{1,255}\Z")


class BadToken(Exception):
    """A token does not count; the text says why, without anything that stands in it."""


class UnknownKey(BadToken):
    """A token names a key that its issuer has not published, as far as is known."""


@dataclass(frozen=True, slots=True)
class Key:
    """A public key.

    :ivar algorithms: those that it may be used for.
    """

    public: Any
    algorithms: tuple[str, ...]


Keys = Mapping[str, Key]


@dataclass(frozen=True, slots=True)
class Source:
    """Where keys are fetched.

    :ivar ca: a file of certificates to trust, empty for those of the system.
    :ivar token: a file with a bearer token to send, empty for none.
    """

    url: str
    ca: str = ""
    token: str = ""


@dataclass(frozen=True, slots=True)
class Issuer:
    """Whose tokens count.

    :ivar issuer: how its tokens call it (``iss``).
    :ivar audience: how they call this daemon (``aud``).
    :ivar algorithms: those that it may use.
    :ivar is_kubernetes: whether a principal is a service account, as ``NAMESPACE:NAME``.
    :ivar principal: the claim with the name of the principal, otherwise.
    :ivar groups: the claim with its groups, empty for none.
    :ivar prefix: what comes before the names of its principals and groups.
    :ivar keys: its keys, None when they come from :attr:`source`.
    """

    issuer: str
    audience: str
    algorithms: tuple[str, ...]
    is_kubernetes: bool
    principal: str
    groups: str
    prefix: str
    keys: Keys | None
    source: Source | None

    def verify(self, token: str, keys: Keys) -> tuple[Principal, float]:
        """Return who *token* is for, and when it expires in seconds since the epoch.

        :raises UnknownKey: when it names none of *keys*.
        :raises BadToken: when it does not count for any other reason.
        """
        try:
            kid = jwt.get_unverified_header(token).get("kid")
            key = keys.get(kid) if isinstance(kid, str) else None
            if key is None:
                raise UnknownKey("The token names a key that its issuer does not have.")
            claims = jwt.decode(
                token,
                key.public,
                algorithms=[each for each in key.algorithms if each in self.algorithms],
                audience=self.audience,
                issuer=self.issuer,
                leeway=LEEWAY,
                options={"require": _REQUIRED},
            )
            return self._principal(claims), float(claims["exp"])
        except BadToken:
            raise
        except jwt.ExpiredSignatureError:
            raise BadToken("The token has expired.") from None
        except jwt.ImmatureSignatureError:
            raise BadToken("The token is not valid yet.") from None
        except jwt.InvalidAudienceError:
            raise BadToken("The token is for another audience.") from None
        except jwt.MissingRequiredClaimError as error:
            raise BadToken(f"The token lacks {error.claim}.") from None
        except Exception:  # it is made of anything, and read by several libraries
            raise BadToken("The token is none that its issuer has signed.") from None

    def _principal(self, claims: Mapping[str, Any]) -> Principal:
        if self.is_kubernetes:
            account = _ACCOUNT.match(claims["sub"])
            if account is None:
                raise BadToken("The token is not that of a service account.")
            name = account[1]
            namespace = f"system:serviceaccounts:{name.partition(':')[0]}"
            groups = ["system:serviceaccounts", namespace]
        else:
            name = claims.get(self.principal)
            if not isinstance(name, str) or not _NAME.match(name):
                raise BadToken("The token does not say who it is for.")
            if self.principal == "email" and claims.get("email_verified") is False:
                raise BadToken("Nobody has verified the address in the token.")
            listed = claims.get(self.groups)
            groups = listed[:_MOST_GROUPS] if isinstance(listed, list) else []
        named = (each for each in groups if isinstance(each, str) and _NAME.match(each))
        return Principal(self.prefix + name, "jwt", frozenset(self.prefix + each for each in named))


def issuer_of(token: str) -> str | None:
    """Return who *token* says has issued it, which is not verified; None when it is no token."""
    try:
        claims = jwt.decode(token, options={"verify_signature": False})
        issuer = claims.get("iss")
    except Exception:  # as in verify()
        return None
    return issuer if isinstance(issuer, str) else None


def read_keys(text: str | bytes) -> dict[str, Key]:
    """Return the public keys of a JWK Set by their identifiers; others in it mean nothing.

    :raises ValueError: when it is no JWK Set, or has no such key.
    """
    try:
        members = json.loads(text)["keys"]
        found = dict(filter(None, map(_key, members)))
    except (KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError("it is not a JWK Set") from None
    if not found:
        raise ValueError("it has no public key with a kid")
    return found


def _key(member: Mapping[str, Any]) -> tuple[str, Key] | None:
    kid, kind, use = member.get("kid"), member.get("kty"), member.get("use", "sig")
    algorithms = ALGORITHMS.get(kind) if isinstance(kind, str) else None
    if not isinstance(kid, str) or algorithms is None or use != "sig":
        return None
    if (only := member.get("alg")) is not None:
        algorithms = tuple(each for each in algorithms if each == only)
    if not algorithms:
        return None
    try:
        public = jwt.PyJWK(dict(member), algorithm=algorithms[0]).key
    except Exception:  # an issuer may publish anything
        return None
    return kid, Key(public, algorithms)
