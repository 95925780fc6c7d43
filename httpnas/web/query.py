"""The query of a request target, which follows the question mark."""

from __future__ import annotations

from urllib.parse import parse_qs

from httpnas.web.problems import Kind, Problem


def parse_query(query: bytes) -> dict[str, str]:
    """Return the fields of *query*; the last one of those with the same name.

    :raises Problem: 400, when it does not consist of fields.
    """
    try:
        fields = parse_qs(query.decode("ascii"), errors="strict", max_num_fields=16)
    except ValueError as error:
        raise Problem(Kind.BAD_QUERY, "The query is not a list of UTF-8 fields.") from error
    return {name: values[-1] for name, values in fields.items()}


def limit_of(fields: dict[str, str]) -> int | None:
    """Return how many entries are asked for, None for all.

    :raises Problem: 400, when it is not a number.
    """
    limit = fields.get("limit")
    if limit is None:
        return None
    if not (limit.isascii() and limit.isdigit() and len(limit) <= 9 and int(limit)):
        raise Problem(Kind.BAD_QUERY, "limit must be a number of entries, at least 1.")
    return int(limit)


def link_of(query: bytes) -> bytes | None:
    """Return the link that *query* has (:mod:`httpnas.access.links`), None when it has none.

    It is taken as it was sent. Several are none that counts.
    """
    if b"link=" not in query:
        return None
    links = [each[5:] for each in query.split(b"&") if each.startswith(b"link=")]
    return b"&".join(links) if links else None
