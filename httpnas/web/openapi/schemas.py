"""The schemas of bodies and headers, and the helpers that the other modules are written with."""

from __future__ import annotations

from typing import Any

from httpnas.access.rules import Right
from httpnas.web.kinds import Kind

Json = dict[str, Any]

HERE = "http://localhost:3000"
UUID = "3f0e8c5a-6a7d-4c0b-9d0e-5f6a2b1c7d84"
TAG = '"2a-a-1797ae5f8b1d6500"'
TAGS = r'^(\*|(W/)?"[!#-~]*"(, *(W/)?"[!#-~]*")*)$'
IDENTITY = "[A-Za-z0-9._~-]{1,128}"
TEXT: Json = {"type": "string"}
COUNT: Json = {"type": "integer", "minimum": 0}
BINARY: Json = {"type": "string", "format": "binary"}


def ref_to(kind: str, name: str) -> Json:
    return {"$ref": f"#/components/{kind}/{name}"}


def schema_of(name: str) -> Json:
    return ref_to("schemas", name)


def object_of(required: Json, optional: Json | None = None, **more: object) -> Json:
    """Return the schema of an object with the properties *required* and *optional*."""
    properties = {**required, **(optional or {})}
    return {"type": "object", "required": [*required], "properties": properties, **more}


def text_like(*examples: str, **more: object) -> Json:
    return {"type": "string", **more, "examples": list(examples)}


def curl_lines(*lines: str) -> str:
    return "\n".join(["", "", "```sh", *lines, "```"])


SCHEMAS: Json = {
    "Problem": object_of(
        {
            "type": {
                "enum": [kind.type for kind in Kind],
                "description": "The cause, for programs. What each means is at `/docs/problems`.",
            },
            "title": {"type": "string", "description": "The name of the status."},
            "status": {"type": "integer", "minimum": 400, "maximum": 599},
            "detail": {
                "type": "string",
                "minLength": 1,
                "description": "What to do about it, for people.",
            },
            "instance": {
                "type": "string",
                "pattern": f"^#{IDENTITY}$",
                "description": "`#` and the `X-Request-ID` of the answer, also in the log.",
            },
        },
        {
            "rights": {
                "type": "array",
                "items": TEXT,
                "description": "One of these rights is missing; only of `missing-right`.",
            },
            "stored": {
                "type": "array",
                "items": TEXT,
                "description": "The files of a form that were stored; only at `/files`.",
            },
        },
        description="What is wrong, and what to do about it (RFC 9457).",
        examples=[
            {
                "type": Kind.IS_FOLDER.type,
                "title": "Conflict",
                "status": 409,
                "detail": "This name is a folder, not a file.",
                "instance": f"#{UUID}",
            }
        ],
    ),
    "LinkWish": object_of(
        {
            "method": {"enum": ["GET", "POST", "PUT", "DELETE"]},
            "path": {"type": "string", "description": "The name of a file or folder."},
            "seconds": {"type": "integer", "minimum": 1, "description": "Until it expires."},
        },
        {
            "prefix": {"type": "boolean", "description": "It is for all names below as well."},
            "max_bytes": {**COUNT, "description": "How many bytes a body may have."},
            "create_only": {"type": "boolean", "description": "It replaces nothing; for POST."},
        },
        additionalProperties=False,
        examples=[{"method": "GET", "path": "demo/numbers.txt", "seconds": 3600}],
    ),
    "Link": object_of(
        {
            "url": {
                "type": "string",
                "pattern": "^/file/",
                "description": "What comes after the host, with the link in its query.",
            },
            "expires": {"type": "string", "format": "date-time"},
        },
        additionalProperties=False,
    ),
    "NotReady": object_of(
        {"reasons": {"type": "array", "items": TEXT, "minItems": 1}},
        allOf=[schema_of("Problem")],
        examples=[
            {
                "type": Kind.NOT_READY.type,
                "title": "Service Unavailable",
                "status": 503,
                "detail": "The daemon is stopping.",
                "instance": f"#{UUID}",
                "reasons": ["The daemon is stopping."],
            }
        ],
    ),
    "Listing": object_of(
        {
            "path": {
                "type": "string",
                "description": "The path of the folder; empty for the root.",
            },
            "entries": {"type": "array", "items": schema_of("Entry")},
            "next": {
                "type": ["string", "null"],
                "description": "The `after` of the next page; null on the last page.",
            },
        },
        additionalProperties=False,
        examples=[
            {
                "path": "demo",
                "entries": [
                    {
                        "name": "done",
                        "type": "folder",
                        "size": None,
                        "mtime": 1700000000.25,
                        "etag": None,
                    },
                    {
                        "name": "numbers.txt",
                        "type": "file",
                        "size": 10,
                        "mtime": 1700000000.5,
                        "etag": TAG,
                    },
                ],
                "next": None,
            }
        ],
    ),
    "Entry": object_of(
        {
            "name": {"type": "string", "pattern": "^[^/]+$"},
            "type": {"enum": ["file", "folder"]},
            "size": {
                "type": ["integer", "null"],
                "minimum": 0,
                "description": "In bytes; null for a folder.",
            },
            "mtime": {"type": "number", "description": "In seconds since the epoch."},
            "etag": {
                "anyOf": [schema_of("EntityTag"), {"type": "null"}],
                "description": "Null for a folder.",
            },
        },
        additionalProperties=False,
    ),
    "EntityTag": text_like(TAG, pattern='^"[!#-~]+"$'),
    "HttpDate": text_like(
        "Tue, 14 Nov 2023 22:13:20 GMT",
        pattern="^[A-Z][a-z]{2}, [0-9]{2} [A-Z][a-z]{2} [0-9]{4} [0-9]{2}:[0-9]{2}:[0-9]{2} GMT$",
    ),
    "Digests": text_like(
        "sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:",
        pattern="^sha-(256|512)=:[A-Za-z0-9+/]+=*:(, *sha-(256|512)=:[A-Za-z0-9+/]+=*:)*$",
    ),
    "Move": object_of(
        {
            "path": {
                "type": "string",
                "minLength": 1,
                "description": "The new name, from the root on, percent-decoded once.",
            }
        },
        examples=[{"path": "archive/numbers.txt"}],
    ),
    "Form": object_of(
        {
            "file": {
                "type": "array",
                "items": BINARY,
                "minItems": 1,
                "description": "The files, each with its file name. The field may have any name.",
            }
        }
    ),
    "Message": object_of(
        {"message": TEXT},
        additionalProperties=False,
        examples=[{"message": "numbers.txt upload task submitted."}],
    ),
    "Transfers": object_of(
        {
            "running": {"type": "array", "items": schema_of("Transfer")},
            "ended": {
                "type": "array",
                "items": schema_of("EndedTransfer"),
                "description": "The latest first.",
            },
        },
        additionalProperties=False,
    ),
    "Rights": object_of(
        {
            "principal": {
                "oneOf": [
                    object_of(
                        {
                            "name": {"type": "string"},
                            "kind": {
                                "type": "string",
                                "examples": ["anonymous", "password", "token", "jwt", "link"],
                            },
                        },
                        additionalProperties=False,
                    ),
                    {"type": "null"},
                ],
                "description": "As whom the client is known, and by what; null without `--auth`.",
            },
            "path": {"type": "string", "description": "The path that was asked about."},
            "rights": {
                "type": "array",
                "items": {"enum": [right.value for right in Right]},
                "description": "Those that the client has at the path or at some name below it; "
                "`see-transfers` and `see-metrics` are about the daemon.",
            },
        },
        additionalProperties=False,
        examples=[
            {
                "principal": {"name": "alice", "kind": "password"},
                "path": "demo",
                "rights": ["list", "read"],
            }
        ],
    ),
    "Transfer": object_of(
        {
            "id": {"type": "string", "description": "The `X-Request-ID` of the request."},
            "client": {"type": ["string", "null"], "description": "Its address."},
            "verb": {"enum": ["upload", "append", "download", "move", "delete"]},
            "name": {"type": "string", "pattern": "^/"},
            "since": {"type": "string", "format": "date-time"},
            "seconds": {"type": "number", "minimum": 0},
            "bytes": {**COUNT, "description": "Bytes of content so far."},
            "bytes_per_second": COUNT,
        },
        {
            "to": {
                "type": "string",
                "pattern": "^/",
                "description": "The new path; only for a move.",
            }
        },
        examples=[
            {
                "id": UUID,
                "client": "127.0.0.1",
                "verb": "upload",
                "name": "/dump/numbers.gz",
                "since": "2023-11-14T22:13:20.500Z",
                "seconds": 1.5,
                "bytes": 3145728,
                "bytes_per_second": 2097152,
            }
        ],
    ),
    "EndedTransfer": object_of(
        {"outcome": {"enum": ["done", "refused", "client gone", "client too slow", "failed"]}},
        {
            "status": {
                "type": "integer",
                "minimum": 400,
                "maximum": 599,
                "description": "The status, if the answer was an error.",
            }
        },
        allOf=[schema_of("Transfer")],
    ),
}
