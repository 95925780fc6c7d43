"""``/openapi.json``: what can be asked of the daemon and what it answers, as OpenAPI 3.1.

Written in Python, as most answers are those of many operations: what is said once here stands once
in the document too, below ``components``, and everything else refers to it by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from httpnas import __version__

Json = dict[str, Any]

_HERE = "http://localhost:3000"
_UUID = "3f0e8c5a-6a7d-4c0b-9d0e-5f6a2b1c7d84"
_TAG = '"2a-a-1797ae5f8b1d6500"'
_TAGS = r'^(\*|(W/)?"[!#-~]*"(, *(W/)?"[!#-~]*")*)$'
_IDENTITY = "[A-Za-z0-9._~-]{1,128}"
_TEXT: Json = {"type": "string"}
_COUNT: Json = {"type": "integer", "minimum": 0}
_BINARY: Json = {"type": "string", "format": "binary"}


def _ref(kind: str, name: str) -> Json:
    return {"$ref": f"#/components/{kind}/{name}"}


def _schema(name: str) -> Json:
    return _ref("schemas", name)


def _object(required: Json, optional: Json | None = None, **more: object) -> Json:
    """Return the schema of an object with the properties *required* and *optional*."""
    properties = {**required, **(optional or {})}
    return {"type": "object", "required": [*required], "properties": properties, **more}


def _text(*examples: str, **more: object) -> Json:
    return {"type": "string", **more, "examples": list(examples)}


def _curl(*lines: str) -> str:
    return "\n".join(["", "", "```sh", *lines, "```"])


# What bodies and headers are made of

_SCHEMAS: Json = {
    "Problem": _object(
        {
            "type": {"const": "about:blank", "description": "The status tells the kind."},
            "title": {"type": "string", "description": "The status in words."},
            "status": {"type": "integer", "minimum": 400, "maximum": 599},
            "detail": {"type": "string", "minLength": 1, "description": "For people."},
            "instance": {
                "type": "string",
                "pattern": f"^#{_IDENTITY}$",
                "description": "`#` and the `X-Request-ID` of the answer, which is in the log.",
            },
        },
        {
            "stored": {
                "type": "array",
                "items": _TEXT,
                "description": "Of a form at `/files` only: which of its files are stored.",
            },
        },
        description="What is wrong and what to do about it (RFC 9457).",
        examples=[
            {
                "type": "about:blank",
                "title": "Conflict",
                "status": 409,
                "detail": "This name is a folder, not a file.",
                "instance": f"#{_UUID}",
            }
        ],
    ),
    "NotReady": _object(
        {"reasons": {"type": "array", "items": _TEXT, "minItems": 1}},
        allOf=[_schema("Problem")],
        examples=[
            {
                "type": "about:blank",
                "title": "Service Unavailable",
                "status": 503,
                "detail": "The daemon is stopping.",
                "instance": f"#{_UUID}",
                "reasons": ["The daemon is stopping."],
            }
        ],
    ),
    "Listing": _object(
        {
            "path": {"type": "string", "description": "The folder's name; empty for the root."},
            "entries": {"type": "array", "items": _schema("Entry")},
            "next": {
                "type": ["string", "null"],
                "description": "The `after` of the next page; null when this is the last one.",
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
                        "etag": _TAG,
                    },
                ],
                "next": None,
            }
        ],
    ),
    "Entry": _object(
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
                "anyOf": [_schema("EntityTag"), {"type": "null"}],
                "description": "Null for a folder.",
            },
        },
        additionalProperties=False,
    ),
    "EntityTag": _text(_TAG, pattern='^"[!#-~]+"$'),
    "HttpDate": _text(
        "Tue, 14 Nov 2023 22:13:20 GMT",
        pattern="^[A-Z][a-z]{2}, [0-9]{2} [A-Z][a-z]{2} [0-9]{4} [0-9]{2}:[0-9]{2}:[0-9]{2} GMT$",
    ),
    "Digests": _text(
        "sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:",
        pattern="^sha-(256|512)=:[A-Za-z0-9+/]+=*:(, *sha-(256|512)=:[A-Za-z0-9+/]+=*:)*$",
    ),
    "Move": _object(
        {
            "path": {
                "type": "string",
                "minLength": 1,
                "description": "The new name, from the root on, percent-decoded once.",
            }
        },
        examples=[{"path": "archive/numbers.txt"}],
    ),
    "Form": _object(
        {
            "file": {
                "type": "array",
                "items": _BINARY,
                "minItems": 1,
                "description": "The files, each with its name. The field may have any name.",
            }
        }
    ),
    "Message": _object(
        {"message": _TEXT},
        additionalProperties=False,
        examples=[{"message": "numbers.txt upload task submitted."}],
    ),
    "Transfers": _object(
        {
            "running": {"type": "array", "items": _schema("Transfer")},
            "ended": {
                "type": "array",
                "items": _schema("EndedTransfer"),
                "description": "The latest first.",
            },
        },
        additionalProperties=False,
    ),
    "Transfer": _object(
        {
            "id": {"type": "string", "description": "The `X-Request-ID` of the request."},
            "client": {"type": ["string", "null"], "description": "Its address."},
            "verb": {"enum": ["upload", "append", "download", "move", "delete"]},
            "name": {"type": "string", "pattern": "^/"},
            "since": {"type": "string", "format": "date-time"},
            "seconds": {"type": "number", "minimum": 0},
            "bytes": {**_COUNT, "description": "Of content, so far."},
            "bytes_per_second": _COUNT,
        },
        {"to": {"type": "string", "pattern": "^/", "description": "Of a move only."}},
        examples=[
            {
                "id": _UUID,
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
    "EndedTransfer": _object(
        {"outcome": {"enum": ["done", "refused", "client gone", "client too slow", "failed"]}},
        {
            "status": {
                "type": "integer",
                "minimum": 400,
                "maximum": 599,
                "description": "Of an answer that told of no success.",
            }
        },
        allOf=[_schema("Transfer")],
    ),
}


# Headers of requests, queries and names


def _parameter(place: str, name: str, description: str, schema: Json, **more: object) -> Json:
    return {"name": name, "in": place, "description": description, **more, "schema": schema}


def _field(name: str, description: str, schema: Json) -> Json:
    return _parameter("header", name, description, schema)


def _name(description: str, example: str) -> Json:
    # An example of the parameter is what a page to try things out begins with; one of its schema
    # is only shown, so that no condition or range is sent that nobody has asked for.
    schema = {"type": "string", "minLength": 1, "maxLength": 4096}
    return _parameter("path", "name", description, schema, required=True, example=example)


_PARAMETERS: Json = {
    "Name": _name(
        "What a file or folder is called, from the root on, percent-encoded. A slash stands "
        "between a folder and what is in it; `%2F` means the same.",
        "demo/numbers.txt",
    ),
    "FormName": _name(
        "The file to download, or the folder for the files of a form, percent-encoded. A slash "
        "may be `%2F`.",
        "demo",
    ),
    "Sort": _parameter(
        "query",
        "sort",
        "What decides the order of the entries. Names are compared by their bytes.",
        {"type": "string", "enum": ["name", "size", "mtime"], "default": "name"},
    ),
    "Order": _parameter(
        "query",
        "order",
        "Which end of that order comes first.",
        {"type": "string", "enum": ["asc", "desc"], "default": "asc"},
    ),
    "Limit": _parameter(
        "query",
        "limit",
        "How many entries are sent at most. By `name`, all are when it is not given. By `size` or "
        "`mtime` it may be 10,000; JSON has 1,000 when it is not given, text and HTML need it.",
        {"type": "integer", "minimum": 1, "maximum": 999999999, "examples": [100]},
    ),
    "After": _parameter(
        "query",
        "after",
        "Where to go on: the `next` of the page before, which had the same `sort` and `order`.",
        _text("numbers.txt"),
    ),
    "Latest": _parameter(
        "query",
        "limit",
        "How many that have ended are shown at most; 1,000 are remembered.",
        {"type": "integer", "minimum": 1, "maximum": 999999999, "examples": [10]},
    ),
    "Range": _field(
        "Range",
        "The bytes to send: up to 16 ranges that do not overlap. What makes no sense is ignored.",
        _text(
            "bytes=0-3",
            "bytes=-2",
            "bytes=1000-",
            pattern="^bytes=([0-9]+-[0-9]*|-[0-9]+)(, *([0-9]+-[0-9]*|-[0-9]+))*$",
        ),
    ),
    "IfRange": _field(
        "If-Range",
        "`Range` counts only when this is the file's `ETag` or `Last-Modified`; else all is sent.",
        _text(_TAG),
    ),
    "IfMatch": _field(
        "If-Match",
        "412 unless the file's entity tag is among these; `*` is any file.",
        _text(_TAG, "*", pattern=_TAGS),
    ),
    "IfUnmodifiedSince": _field(
        "If-Unmodified-Since",
        "412 when the file was changed later. `If-Match` goes before it.",
        _schema("HttpDate"),
    ),
    "IfNoneMatch": _field(
        "If-None-Match",
        "304 when the file's entity tag is among these; `*` is any file.",
        _text(_TAG, "*", pattern=_TAGS),
    ),
    "IfModifiedSince": _field(
        "If-Modified-Since",
        "304 unless the file was changed later. `If-None-Match` goes before it.",
        _schema("HttpDate"),
    ),
    "UnlessMatch": _field(
        "If-None-Match",
        "412 when the file's entity tag is among these. With `*`, nothing is ever replaced.",
        _text("*", pattern=_TAGS),
    ),
    "WantReprDigest": _field(
        "Want-Repr-Digest",
        "Asks for a digest of the whole file (RFC 9530), the one with the greater number.",
        _text(
            "sha-256=1",
            "sha-512=10, sha-256=1",
            pattern="^sha-(256|512)=(10|[0-9])(, *sha-(256|512)=(10|[0-9]))*$",
        ),
    ),
    "ContentDigest": _field(
        "Content-Digest",
        "A digest of the body (RFC 9530). When it does not match, nothing is changed: 400.",
        _schema("Digests"),
    ),
    "ReprDigest": _field("Repr-Digest", "As `Content-Digest`.", _schema("Digests")),
    "ContentMD5": _field(
        "Content-MD5",
        "As `Content-Digest`, by MD5 (RFC 1864).",
        _text("1B2M2Y8AsgTpgAmY7PhCfg==", pattern="^[A-Za-z0-9+/]{21}[AQgw]==$"),
    ),
    "UploadOffset": _field(
        "Upload-Offset",
        "How many bytes the file must have; else 409, with the true number.",
        {**_COUNT, "maximum": (1 << 63) - 1, "examples": [10]},
    ),
    "IdempotencyKey": _field(
        "Idempotency-Key",
        "Made up by the client: what comes twice with one key is appended once, and answered "
        "twice. A file remembers its latest 48.",
        _text("task-7", minLength=1, maxLength=255),
    ),
    "RequestID": _field(
        "X-Request-ID",
        "What the log is to call the request.",
        _text("job-17.upload", pattern=f"^{_IDENTITY}$"),
    ),
    "Traceparent": _field(
        "traceparent",
        "W3C Trace Context. Its trace-id is what the log calls a request without `X-Request-ID`.",
        _text(
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            pattern="^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$",
        ),
    ),
    "Expect": _field(
        "Expect",
        "Has the body wait until it is asked for, so that a refusal comes before it. No page of a "
        "browser can set it.",
        {"type": "string", "enum": ["100-continue"]},
    ),
    "Origin": _field(
        "Origin",
        "Set by browsers, never by their pages: a page of another site changes nothing (403), "
        "unless `--cors-origins` has that site.",
        _text(_HERE),
    ),
}


# Headers of answers


def _header(name: str, description: str, schema: Json, required: bool = True) -> tuple[str, Json]:
    return name, {"description": description, "required": required, "schema": schema}


#: By what they are called here, as one header may mean this or that: the header, and what it is.
_HEADERS: dict[str, tuple[str, Json]] = {
    "RequestID": _header(
        "X-Request-ID", "What the log calls the request.", _text(_UUID, pattern=f"^{_IDENTITY}$")
    ),
    "ETag": _header("ETag", "The version of the file.", _schema("EntityTag")),
    "FileETag": _header("ETag", "The version of a file.", _schema("EntityTag"), False),
    "NewETag": _header("ETag", "The version now; not of a move.", _schema("EntityTag"), False),
    "Changed": _header("Last-Modified", "When the file was changed.", _schema("HttpDate")),
    "FileChanged": _header("Last-Modified", "Of a file.", _schema("HttpDate"), False),
    "Ranges": _header("Accept-Ranges", "`Range` is understood.", {"const": "bytes"}),
    "FileRanges": _header("Accept-Ranges", "Of a file.", {"const": "bytes"}, False),
    "Digest": _header("Repr-Digest", "Of the whole file.", _schema("Digests"), False),
    "Part": _header(
        "Content-Range",
        "Which bytes these are. Of several ranges, each part tells that of itself.",
        _text("bytes 0-3/10", pattern="^bytes [0-9]+-[0-9]+/[0-9]+$"),
        False,
    ),
    "Whole": _header(
        "Content-Range", "How long it is.", _text("bytes */10", pattern=r"^bytes \*/[0-9]+$")
    ),
    "Attached": _header(
        "Content-Disposition",
        "Has a browser save the file, under a name that tells the time too.",
        _text(
            'attachment; filename="download_20231114221320_numbers.txt"',
            pattern='^attachment; filename="',
        ),
    ),
    "NewLength": _header("Upload-Offset", "The length now; not of a move.", _COUNT, False),
    "TrueLength": _header("Upload-Offset", "The length, if another was expected.", _COUNT, False),
    "Location": _header(
        "Location", "The folder's own path.", _text("/file/demo/", pattern=r"^[^?]*/(\?.*)?$")
    ),
    "Vary": _header("Vary", "What else than the path decides.", _text("Accept")),
    "FolderVary": _header("Vary", "What else than the path decides.", _text("Accept"), False),
    "Allow": _header(
        "Allow", "What can be done here.", _text("GET, HEAD", pattern="^[A-Z]+(, [A-Z]+)*$")
    ),
    "RetryAfter": _header("Retry-After", "In seconds.", {"type": "integer", "minimum": 1}),
    "Uncoded": _header("Accept-Encoding", "What is taken.", {"const": "identity"}, False),
    "FormOnly": _header("Accept-Post", "What is taken.", {"const": "multipart/form-data"}, False),
    "NoStore": _header("Cache-Control", "It is another one soon.", {"const": "no-store"}),
    "NoCache": _header("Cache-Control", "To be asked for anew.", {"const": "no-cache"}),
    "NoSniff": _header("X-Content-Type-Options", "The type is true.", {"const": "nosniff"}),
    "Policy": _header("Content-Security-Policy", "What a browser may do with it.", _TEXT),
    "PagePolicy": _header("Content-Security-Policy", "Of the HTML.", _TEXT, False),
    "Referrer": _header("Referrer-Policy", "Links tell nobody else.", {"const": "same-origin"}),
}


# Answers


def _answer(description: str, content: Json | None = None, *headers: str) -> Json:
    """Return an answer.

    :param content: schemas and examples by media type, None for no body at all.
    :param headers: of :data:`_HEADERS`, besides the one that every answer has.
    """
    fields = {_HEADERS[name][0]: _ref("headers", name) for name in ("RequestID", *headers)}
    body = {} if content is None else {"content": content}
    return {"description": description, "headers": fields, **body}


def _problem(description: str, *headers: str, schema: str = "Problem") -> Json:
    content = {"application/problem+json": {"schema": _schema(schema)}}
    return _answer(description, content, *headers)


def _json(schema: Json) -> Json:
    return {"application/json": {"schema": schema}}


def _is(word: str) -> Json:
    return _json(_object({"status": {"const": word}}, additionalProperties=False))


_DONE: Json = {"text/plain": {"schema": {"const": "OK"}}}
_PLAIN: Json = {"text/plain": {"schema": _TEXT}}
_HTML: Json = {"text/html": {"schema": _TEXT}}
_BYTES: Json = {"*/*": {"schema": {"description": "The bytes, of whatever type."}}}
_OF_A_FILE = ("ETag", "Changed", "Ranges", "NoSniff", "Policy")
_OF_A_PART = (*_OF_A_FILE, "Part", "Digest")
_OF_A_PAGE = ("ETag", "NoCache", "NoSniff", "Policy", "Referrer")

_PART = "The bytes that were asked for; several ranges come as `multipart/byteranges`."

_RESPONSES: Json = {
    "Done": _answer("It is done.", _DONE),
    "Methods": _answer("What can be done here.", None, "Allow"),
    "Listed": _answer(
        "The folder; as text, one name a line.",
        {
            "text/plain": {"schema": _TEXT, "example": "done\nnumbers.txt\n"},
            **_json(_schema("Listing")),
            **_HTML,
        },
        "Vary",
        "NoSniff",
        "Policy",
    ),
    "FileOrListing": _answer(
        "The file, with the type that its extension stands for (none when nobody knows it), or "
        "the folder in one of three forms.",
        {
            "text/plain": {
                "schema": _TEXT,
                "examples": {
                    "file": {"summary": "A file", "value": "1\n2\n3\n4\n5\n"},
                    "folder": {"summary": "A folder", "value": "done\nnumbers.txt\n"},
                },
            },
            **_json(
                {
                    "anyOf": [
                        _schema("Listing"),
                        {"title": "File", "description": "Any that is JSON."},
                    ]
                }
            ),
            **_HTML,
            **_BYTES,
        },
        "FileETag",
        "FileChanged",
        "FileRanges",
        "Digest",
        "FolderVary",
        "NoSniff",
        "Policy",
    ),
    "Part": _answer(_PART, _BYTES, *_OF_A_PART),
    "NotModified": _answer("The client has this version.", None, *_OF_A_FILE),
    "Attachment": _answer("The file.", _BYTES, *_OF_A_FILE, "Digest", "Attached"),
    "AttachmentPart": _answer(_PART, _BYTES, *_OF_A_PART, "Attached"),
    "AttachmentNotModified": _answer("The client has this version.", None, *_OF_A_FILE, "Attached"),
    "IntoFolder": _answer(
        "A folder, asked for as HTML, whose path has no slash at its end.",
        _PLAIN,
        "Location",
        "Vary",
    ),
    "Lines": _answer(
        "The number of newlines.",
        {"text/plain": {"schema": {"type": "string", "pattern": "^[0-9]+$"}, "example": "5"}},
    ),
    "Stored": _answer("The file has this content, and this version.", _DONE, "ETag"),
    "AppendedOrMoved": _answer("It is appended, or moved.", _DONE, "NewETag", "NewLength"),
    "FormStored": _answer(
        "The files are stored; 202 is what simple-fs gives.",
        {**_json(_schema("Message")), **_HTML},
        "PagePolicy",
    ),
    "Alive": _answer("The daemon lives, whatever has become of its storage.", _is("alive")),
    "Ready": _answer("Requests may come.", _is("ready")),
    "Metrics": _answer(
        "What has been counted and measured.",
        {
            "text/plain": {
                "schema": _TEXT,
                "example": "httpnas_connections 3.0\ndisk_used 0.42\n",
            },
            "application/openmetrics-text": {"schema": _TEXT},
        },
    ),
    "Transfers": _answer("What runs, and what has ended.", _json(_schema("Transfers")), "NoStore"),
    "Page": _answer("The page.", _HTML, *_OF_A_PAGE),
    "Document": _answer(
        "What you are reading.", _json({"type": "object", "required": ["openapi"]}), *_OF_A_PAGE
    ),
    "PageNotModified": _answer("The client has it.", None, *_OF_A_PAGE),
    # Refusals
    "BadRequest": _problem(
        "It can not be understood: a bad name, query or field, a digest that does not match, JSON "
        "that is not a move, a form that is broken, what is not HTTP."
    ),
    "Forbidden": _problem(
        "The daemon's own folder or the root is not to be changed, or the storage's permissions "
        "forbid it, or a page of another site asks for a change."
    ),
    "NotFound": _problem("There is nothing, or a link, or a special file."),
    "MethodNotAllowed": _problem(
        "A name that ends in `/wc` or `/mv` takes other methods.", "Allow"
    ),
    "Timeout": _problem("The headers or the body did not move on."),
    "Conflict": _problem("A folder stands where a file is needed, or the other way round."),
    "AppendConflict": _problem(
        "The file has another length than expected; or a folder stands where a file is needed, or "
        "the other way round.",
        "TrueLength",
    ),
    "ConditionFailed": _problem("A condition does not hold."),
    "TooLarge": _problem(
        "The body is larger than the daemon (`--max-upload`) or the file system takes."
    ),
    "TargetTooLong": _problem(
        "The request line has more than 8,192 bytes, or the name more than 4,096."
    ),
    "Encoded": _problem(
        "The body has a `Content-Encoding`; bodies are stored as they come.", "Uncoded"
    ),
    "NotAForm": _problem(
        "The body is no form, or has a `Content-Encoding`.", "FormOnly", "Uncoded"
    ),
    "NoSuchRange": _problem(
        "No range has a byte in the file.", "Whole", "Ranges", "NoSniff", "Policy"
    ),
    "NotExpected": _problem("`Expect` has something else than `100-continue`."),
    "OtherHost": _problem("The daemon does not go by the name in `Host` (`--hosts`)."),
    "HeadersTooLarge": _problem("The headers have more than 100 lines or 16,384 bytes."),
    "Failed": _problem("The daemon or its storage failed; the log tells how."),
    "NotImplemented": _problem(
        "The method is in small letters, or `Transfer-Encoding` is not `chunked`."
    ),
    "Busy": _problem(
        "The storage does not answer as it should, others change the name without pause, or the "
        "daemon is stopping.",
        "RetryAfter",
    ),
    "NotReady": _problem("Requests had better not come.", "RetryAfter", schema="NotReady"),
    "Full": _problem("There is not enough space left."),
}


# Operations

#: What any request may be answered, often before anybody looks at its path.
_ALWAYS = {
    400: "BadRequest",
    408: "Timeout",
    414: "TargetTooLong",
    417: "NotExpected",
    421: "OtherHost",
    431: "HeadersTooLarge",
    500: "Failed",
    501: "NotImplemented",
}
_READING = {403: "Forbidden", 404: "NotFound", 503: "Busy"}
_CHANGING = {**_READING, 409: "Conflict", 412: "ConditionFailed", 507: "Full"}
_RECEIVING = {**_CHANGING, 413: "TooLarge", 415: "Encoded"}
_SENDING = {**_READING, 412: "ConditionFailed", 416: "NoSuchRange"}
_VERB = {405: "MethodNotAllowed"}

_CONDITIONS = ("IfMatch", "IfUnmodifiedSince", "IfNoneMatch", "IfModifiedSince")
_CHANGE = ("IfMatch", "IfUnmodifiedSince", "UnlessMatch", "Origin")
_DIGESTS = ("ContentDigest", "ReprDigest", "ContentMD5")
_SHARE = ("Sort", "Order", "Limit", "After")

_OCTETS: Json = {"application/octet-stream": {"schema": _BINARY}}
_MOVE = _json(_schema("Move"))
_FORM: Json = {
    "required": True,
    "content": {"multipart/form-data": {"schema": _schema("Form")}},
}


def _operation(
    identity: str,
    summary: str,
    answers: Mapping[int, str],
    *parameters: str,
    **more: object,
) -> Json:
    """Return an operation.

    :param identity: its name for programs.
    :param answers: of :data:`_RESPONSES` by status, besides :data:`_ALWAYS`.
    :param parameters: of :data:`_PARAMETERS`, besides those of its path.
    """
    every = sorted({**_ALWAYS, **answers}.items())
    return {
        "operationId": identity,
        "summary": summary,
        **more,
        "parameters": [_ref("parameters", name) for name in parameters],
        "responses": {str(status): _ref("responses", name) for status, name in every},
    }


def _head(get: Json) -> Json:
    """Return the HEAD that goes with *get*, in which ranges mean nothing."""
    ranges = [_ref("parameters", name) for name in ("Range", "IfRange")]
    return {
        "operationId": f"{get['operationId']}Head",
        "summary": "The headers of what GET answers",
        "parameters": [parameter for parameter in get["parameters"] if parameter not in ranges],
        "responses": {
            status: answer
            for status, answer in get["responses"].items()
            if status not in ("206", "416")
        },
    }


def _path(tag: str, *parameters: str, **operations: Json) -> Json:
    """Return what can be asked of a path; HEAD goes with GET.

    :param parameters: of all its operations.
    """
    if "get" in operations:
        operations["head"] = _head(operations["get"])
        operations.setdefault("options", _options(operations["get"]["operationId"] + "Options"))
    every = [_ref("parameters", name) for name in parameters]
    trace = [_ref("parameters", name) for name in ("RequestID", "Traceparent")]
    # The page shows operations and parameters in this order: what people come for stands first.
    return {
        method: {
            "tags": [tag],
            **operations[method],
            "parameters": [*every, *operations[method]["parameters"], *trace],
        }
        for method in ("get", "post", "put", "delete", "head", "options")
        if method in operations
    }


def _options(identity: str) -> Json:
    answers = {204: "Methods", 503: "Busy"}
    return _operation(identity, "The methods that can be used here", answers)


def _page(identity: str, summary: str, answer: str = "Page") -> Json:
    answers = {200: answer, 304: "PageNotModified"}
    get = _operation(identity, summary, answers, "IfNoneMatch", "IfModifiedSince")
    return _path("pages", get=get)


_FILE: Json = {
    "/file": _path(
        "file",
        get=_operation(
            "checkStorage", "Can the storage be written to?", {200: "Done", 503: "Busy"}
        ),
        options=_options("checkOptions"),
    ),
    "/file/": _path(
        "file",
        get=_operation(
            "listRoot",
            "List the root",
            {**_READING, 200: "Listed"},
            *_SHARE,
            description="As text, JSON or HTML, whichever `Accept` would rather have."
            + _curl(
                f"curl {_HERE}/file/",
                f"curl -H 'Accept: application/json' '{_HERE}/file/?sort=size&order=desc&limit=9'",
            ),
        ),
        options=_options("rootOptions"),
    ),
    "/file/{name}": _path(
        "file",
        "Name",
        get=_operation(
            "download",
            "Download a file, or list a folder",
            {
                **_SENDING,
                **_VERB,
                200: "FileOrListing",
                206: "Part",
                301: "IntoFolder",
                304: "NotModified",
            },
            "Range",
            "IfRange",
            *_CONDITIONS,
            "WantReprDigest",
            *_SHARE,
            description="What is sent is the version that was opened, whatever happens to the name "
            "meanwhile. Ranges, conditions and digests are about a file, the query is about a "
            "folder."
            + _curl(
                f"curl {_HERE}/file/demo/numbers.txt",
                f"curl -r 0-3 {_HERE}/file/demo/numbers.txt",
                f"curl -H 'Accept: application/json' {_HERE}/file/demo",
            ),
        ),
        post=_operation(
            "upload",
            "Create or replace a file",
            {**_RECEIVING, **_VERB, 200: "Stored"},
            *_CHANGE,
            *_DIGESTS,
            "Expect",
            description="The folders on the way are made. Until all has come the old content is "
            "served; what ends early changes nothing."
            + _curl(
                f"seq 1 5 | curl -X POST -T - {_HERE}/file/demo/numbers.txt",
                f"curl -X POST -H 'If-None-Match: *' -d mine {_HERE}/file/demo/claim",
            ),
            requestBody={
                "description": "Any bytes, of any type and length.",
                "content": {
                    "text/plain": {"schema": _TEXT, "example": "1\n2\n3\n4\n5\n"},
                    **_OCTETS,
                },
            },
        ),
        put=_operation(
            "append",
            "Append to a file; move it, when the body is JSON",
            {**_RECEIVING, **_VERB, 200: "AppendedOrMoved", 409: "AppendConflict"},
            *_CHANGE,
            "UploadOffset",
            "IdempotencyKey",
            *_DIGESTS,
            "Expect",
            description="The body lands at the end, whole and in one piece or not at all, however "
            "many clients append."
            + _curl(
                f"echo 6 | curl -T - {_HERE}/file/demo/numbers.txt",
                f"echo 7 | curl -T - -H 'Idempotency-Key: task-7' {_HERE}/file/demo/numbers.txt",
                "curl -X PUT -H 'Content-Type: application/json' \\",
                f'  -d \'{{"path": "archive/numbers.txt"}}\' {_HERE}/file/demo/numbers.txt',
            ),
            requestBody={
                "description": "Any bytes, of any type but `application/json`: to append JSON, "
                "call it `application/x-ndjson`.",
                "content": {
                    "text/plain": {"schema": _TEXT, "example": "6\n"},
                    **_OCTETS,
                    **_MOVE,
                },
            },
        ),
        delete=_operation(
            "delete",
            "Remove a file, or a folder with all in it",
            {**_CHANGING, **_VERB, 200: "Done"},
            *_CHANGE,
            description=_curl(f"curl -X DELETE {_HERE}/file/demo").strip(),
        ),
        options=_options("nameOptions"),
    ),
    "/file/{name}/wc": _path(
        "file",
        "Name",
        get=_operation(
            "countLines",
            "Count the lines of a file",
            {**_READING, 200: "Lines", 409: "Conflict"},
            description="The newlines, as `wc -l` counts. A file of the name `wc` is reached as "
            "`demo%2Fwc`." + _curl(f"curl {_HERE}/file/demo/numbers.txt/wc"),
        ),
        options=_options("countOptions"),
    ),
    "/file/{name}/mv": _path(
        "file",
        "Name",
        put=_operation(
            "move",
            "Move a file or folder",
            {**_CHANGING, 200: "Done", 415: "Encoded"},
            *_CHANGE,
            "Expect",
            description="A file at the new name is replaced, a folder is not. `If-None-Match: *` "
            "is about the new name, the other conditions are about the old one."
            + _curl(
                'curl -X PUT -d \'{"path": "archive/numbers.txt"}\' \\',
                f"  {_HERE}/file/demo/numbers.txt/mv",
            ),
            requestBody={"required": True, "content": _MOVE},
        ),
        options=_options("moveOptions"),
    ),
}

_FILES: Json = {
    "/files/": _path(
        "files",
        post=_operation(
            "uploadForm",
            "Store the files of a form in the root",
            {**_RECEIVING, 202: "FormStored", 415: "NotAForm"},
            *_CHANGE,
            "Expect",
            description="The files that had come whole are kept when the form breaks off: `stored` "
            "in the problem has their names. HTML is answered when `Accept` would rather have it."
            + _curl(f"curl -F file=@numbers.txt {_HERE}/files/"),
            requestBody=_FORM,
        ),
        options=_options("formOptions"),
    ),
    "/files/{name}": _path(
        "files",
        "FormName",
        get=_operation(
            "save",
            "Download a file, to be saved",
            {
                **_SENDING,
                200: "Attachment",
                206: "AttachmentPart",
                304: "AttachmentNotModified",
                409: "Conflict",
            },
            "Range",
            "IfRange",
            *_CONDITIONS,
            "WantReprDigest",
            description=_curl(f"curl -OJ {_HERE}/files/demo/numbers.txt").strip(),
        ),
        post=_operation(
            "uploadFormIntoFolder",
            "Store the files of a form in a folder",
            {**_RECEIVING, 202: "FormStored", 415: "NotAForm"},
            *_CHANGE,
            "Expect",
            description="As in the root; the folder is made when there is none."
            + _curl(f"curl -F file=@numbers.txt {_HERE}/files/demo"),
            requestBody=_FORM,
        ),
        options=_options("saveOptions"),
    ),
}

_OPERATIONS: Json = {
    "/health": _path(
        "operations", get=_operation("health", "Is the daemon alive?", {200: "Alive"})
    ),
    "/ready": _path(
        "operations",
        get=_operation(
            "ready",
            "May requests come?",
            {200: "Ready", 503: "NotReady"},
            description="Not while the daemon is stopping, the storage fails or can not be written "
            "to, or less than `--headroom` is free.",
        ),
    ),
    "/metrics": _path(
        "operations", get=_operation("metrics", "Metrics, for Prometheus", {200: "Metrics"})
    ),
    "/transfers": _path(
        "operations",
        get=_operation(
            "transfers",
            "Transfers that run, and the latest that have ended",
            {200: "Transfers"},
            "Latest",
            description=_curl(f"curl '{_HERE}/transfers?limit=10'").strip(),
        ),
    ),
}

_PAGES: Json = {
    "/": _page("home", "What is stored, for people"),
    "/docs": _page("docs", "This document, for people"),
    "/openapi.json": _page("openapi", "This document", "Document"),
}

_ABOUT = f"""\
Files lie below one folder, the *root*, and are read and written by plain HTTP:

```sh
seq 1 5 | curl -X POST -T - {_HERE}/file/demo/numbers.txt   # create or replace
echo 6 | curl -T - {_HERE}/file/demo/numbers.txt            # append
curl {_HERE}/file/demo/numbers.txt                          # read
curl {_HERE}/file/demo/                                     # list
curl -X DELETE {_HERE}/file/demo                            # remove
```

Two doors lead to the same files. At `/file`, the body of a request is the file. At `/files`, forms
bring files and browsers save them. There is no authentication.

**A change** is true when it is answered with 200 or 202: it is on stable storage, unless the daemon
runs with `--durability none`. A file appears whole or not at all.

**A refusal** is a problem document (RFC 9457); its `detail` says what to do. A method that a path
does not have is refused with 405, a path that is not here with 404.

**Every answer** has an `X-Request-ID`, which is what the daemon's log calls the request.

*Try it out*, below, is about the real files of this daemon.
"""


def document() -> bytes:
    """Return the document."""
    members = {
        "openapi": "3.1.0",
        "info": {
            "title": "httpnas",
            "version": __version__,
            "summary": "Network-attached storage over plain HTTP, for those who have only curl",
            "description": _ABOUT,
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/", "description": "The daemon that this comes from"}],
        "tags": [
            {"name": "file", "description": "POST creates or replaces, PUT appends or moves."},
            {"name": "files", "description": "Forms and downloads, as simple-fs has them."},
            {"name": "operations", "description": "About the daemon, for those who run it."},
            {"name": "pages", "description": "For people."},
        ],
        "paths": {**_FILE, **_FILES, **_OPERATIONS, **_PAGES},
        "components": {
            "schemas": _SCHEMAS,
            "parameters": _PARAMETERS,
            "headers": {name: header for name, (_, header) in _HEADERS.items()},
            "responses": _RESPONSES,
        },
    }
    return json.dumps(members, ensure_ascii=False).encode()
