"""``/openapi.json``: the requests that the daemon takes and its answers, as OpenAPI 3.1.

It is written in Python because many operations share the same answers. What is said once here is
said once in the document too, below ``components``; everything else refers to it by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from httpnas import __version__
from httpnas.web.kinds import PAGE
from httpnas.web.openapi.answers import RESPONSES, json_of
from httpnas.web.openapi.fields import HEADERS, PARAMETERS
from httpnas.web.openapi.schemas import (
    BINARY,
    HERE,
    SCHEMAS,
    TEXT,
    Json,
    curl_lines,
    ref_to,
    schema_of,
)

_ALWAYS = {
    400: "BadRequest",
    401: "Unauthenticated",
    408: "Timeout",
    414: "TargetTooLong",
    417: "NotExpected",
    421: "OtherHost",
    429: "TooManyFailures",
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

_SCHEMES: Json = {
    "basic": {"type": "http", "scheme": "basic", "description": "A user and a password."},
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "A token, or a JWT of an issuer.",
    },
    "link": {"type": "apiKey", "in": "query", "name": "link", "description": "Of `/links`."},
}

_OCTETS: Json = {"application/octet-stream": {"schema": BINARY}}
_MOVE = json_of(schema_of("Move"))
_FORM: Json = {
    "required": True,
    "content": {"multipart/form-data": {"schema": schema_of("Form")}},
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
    :param answers: names in :data:`RESPONSES` by status, in addition to :data:`_ALWAYS`.
    :param parameters: names in :data:`PARAMETERS`, in addition to those of its path.
    """
    every = sorted({**_ALWAYS, **answers}.items())
    return {
        "operationId": identity,
        "summary": summary,
        **more,
        "parameters": [ref_to("parameters", name) for name in parameters],
        "responses": {str(status): ref_to("responses", name) for status, name in every},
    }


def _head(get: Json) -> Json:
    """Return the HEAD that goes with *get*, in which ranges mean nothing."""
    ranges = [ref_to("parameters", name) for name in ("Range", "IfRange")]
    return {
        "operationId": f"{get['operationId']}Head",
        "summary": "The headers that GET would send",
        "parameters": [parameter for parameter in get["parameters"] if parameter not in ranges],
        "responses": {
            status: answer
            for status, answer in get["responses"].items()
            if status not in ("206", "416")
        },
    }


def _path(tag: str, *parameters: str, **operations: Json) -> Json:
    """Return the operations of a path; HEAD comes with GET.

    :param parameters: those that all its operations have.
    """
    if "get" in operations:
        operations["head"] = _head(operations["get"])
        operations.setdefault("options", _options(operations["get"]["operationId"] + "Options"))
    every = [ref_to("parameters", name) for name in parameters]
    trace = [ref_to("parameters", name) for name in ("RequestID", "Traceparent")]
    # The page shows operations and parameters in this order: the important ones come first.
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
    return _operation(identity, "The methods of this path", answers)


def _page(identity: str, summary: str, answer: str = "Page") -> Json:
    answers = {200: answer, 304: "PageNotModified"}
    get = _operation(identity, summary, answers, "IfNoneMatch", "IfModifiedSince")
    return _path("pages", get=get)


_FILE: Json = {
    "/file": _path(
        "file",
        get=_operation(
            "checkStorage", "Can the storage be written to?", {200: "Done", 503: "NotWritable"}
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
            description="As text, JSON or HTML, whichever `Accept` prefers."
            + curl_lines(
                f"curl {HERE}/file/",
                f"curl -H 'Accept: application/json' '{HERE}/file/?sort=size&order=desc&limit=9'",
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
            description="The download has the version of the file at its start, whatever happens "
            "to the name meanwhile. Ranges, conditions and digests apply to a file; the query "
            "applies to a folder."
            + curl_lines(
                f"curl {HERE}/file/demo/numbers.txt",
                f"curl -r 0-3 {HERE}/file/demo/numbers.txt",
                f"curl -H 'Accept: application/json' {HERE}/file/demo",
            ),
        ),
        post=_operation(
            "upload",
            "Create or replace a file",
            {**_RECEIVING, **_VERB, 200: "Stored"},
            *_CHANGE,
            *_DIGESTS,
            "Expect",
            description="Missing folders are created. The old content is served until the whole "
            "body has arrived; a body that ends early changes nothing."
            + curl_lines(
                f"seq 1 5 | curl -X POST -T - {HERE}/file/demo/numbers.txt",
                f"curl -X POST -H 'If-None-Match: *' -d mine {HERE}/file/demo/claim",
            ),
            requestBody={
                "description": "Any bytes, of any type and length.",
                "content": {
                    "text/plain": {"schema": TEXT, "example": "1\n2\n3\n4\n5\n"},
                    **_OCTETS,
                },
            },
        ),
        put=_operation(
            "append",
            "Append to a file; move it, when the body is JSON",
            {
                **_RECEIVING,
                **_VERB,
                200: "AppendedOrMoved",
                409: "AppendConflict",
                422: "KeyReused",
            },
            *_CHANGE,
            "UploadOffset",
            "IdempotencyKey",
            *_DIGESTS,
            "Expect",
            description="The body is added to the end of the file, in one piece or not at all, "
            "however many clients append at the same time."
            + curl_lines(
                f"echo 6 | curl -T - {HERE}/file/demo/numbers.txt",
                f"echo 7 | curl -T - -H 'Idempotency-Key: task-7' {HERE}/file/demo/numbers.txt",
                "curl -X PUT -H 'Content-Type: application/json' \\",
                f'  -d \'{{"path": "archive/numbers.txt"}}\' {HERE}/file/demo/numbers.txt',
            ),
            requestBody={
                "description": "Any bytes, of any type but `application/json`. To append JSON, "
                "send it as `application/x-ndjson`.",
                "content": {
                    "text/plain": {"schema": TEXT, "example": "6\n"},
                    **_OCTETS,
                    **_MOVE,
                },
            },
        ),
        delete=_operation(
            "delete",
            "Remove a file, or a folder with everything in it",
            {**_CHANGING, **_VERB, 200: "Done"},
            *_CHANGE,
            description=curl_lines(f"curl -X DELETE {HERE}/file/demo").strip(),
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
            description="The number of newlines, as `wc -l` counts them. The path of a file "
            "called `wc` is `demo%2Fwc`; for reading, `demo/wc` will do."
            + curl_lines(f"curl {HERE}/file/demo/numbers.txt/wc"),
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
            "applies to the new name, the other conditions to the old one."
            + curl_lines(
                'curl -X PUT -d \'{"path": "archive/numbers.txt"}\' \\',
                f"  {HERE}/file/demo/numbers.txt/mv",
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
            description="If the form breaks off, the files that arrived whole are kept: `stored` "
            "in the problem lists their names. The answer is HTML if `Accept` prefers it."
            + curl_lines(f"curl -F file=@numbers.txt {HERE}/files/"),
            requestBody=_FORM,
        ),
        options=_options("formOptions"),
    ),
    "/files/{name}": _path(
        "files",
        "FormName",
        get=_operation(
            "save",
            "Download a file, to save it",
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
            description=curl_lines(f"curl -OJ {HERE}/files/demo/numbers.txt").strip(),
        ),
        post=_operation(
            "uploadFormIntoFolder",
            "Store the files of a form in a folder",
            {**_RECEIVING, 202: "FormStored", 415: "NotAForm"},
            *_CHANGE,
            "Expect",
            description="As in the root; the folder is created if it is missing."
            + curl_lines(f"curl -F file=@numbers.txt {HERE}/files/demo"),
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
            "Is the daemon ready for requests?",
            {200: "Ready", 503: "NotReady"},
            description="It is not ready while it is stopping, while the storage fails or cannot "
            "be written to, or while fewer bytes than `--headroom` are free.",
        ),
    ),
    "/metrics": _path(
        "operations",
        get=_operation(
            "metrics", "Metrics, for Prometheus", {200: "Metrics", 403: "Forbidden", 503: "Busy"}
        ),
    ),
    "/transfers": _path(
        "operations",
        get=_operation(
            "transfers",
            "The transfers that run, and the latest that ended",
            {200: "Transfers", 403: "Forbidden", 503: "Busy"},
            "Latest",
            description=curl_lines(f"curl '{HERE}/transfers?limit=10'").strip(),
        ),
    ),
}

_LINKS: Json = {
    "/links": _path(
        "links",
        post=_operation(
            "sign",
            "Make a link for a method and a name",
            {200: "Linked", 403: "Forbidden", 404: "NotFound", 503: "Busy"},
            description="Whoever has the link needs no credentials. It needs the right `sign`, and "
            "the rights that it gives. Without `--auth` and keys, there is nothing here (404)."
            + curl_lines(
                'curl -H "Authorization: Bearer $TOKEN" \\',
                '  -d \'{"method": "GET", "path": "demo/numbers.txt", "seconds": 3600}\' \\',
                f"  {HERE}/links",
            ),
            requestBody={"required": True, "content": json_of(schema_of("LinkWish"))},
        ),
        options=_options("signOptions"),
    ),
    "/rights": _path(
        "links",
        get=_operation(
            "rights",
            "Who am I, and what may I do?",
            {200: "Rights", 503: "Busy"},
            "RightsPath",
            "Anonymous",
            description="A right that is missing here is missing at the path and at all names "
            "below it. One that is here may be missing at some of them. The disk is not asked, so "
            "this does not tell what exists.",
        ),
    ),
}

_PAGES: Json = {
    "/": _page("home", "The stored files, for people"),
    "/docs": _page("docs", "This document, for people"),
    PAGE: _page("problems", "The causes of refusals, for people"),
    "/openapi.json": _page("openapi", "This document", "Document"),
}

_ABOUT = f"""\
All files are below one folder, the *root*. They are read and written with plain HTTP:

```sh
seq 1 5 | curl -X POST -T - {HERE}/file/demo/numbers.txt   # create or replace
echo 6 | curl -T - {HERE}/file/demo/numbers.txt            # append
curl {HERE}/file/demo/numbers.txt                          # read
curl {HERE}/file/demo/                                     # list
curl -X DELETE {HERE}/file/demo                            # remove
```

Two doors lead to the same files. At `/file`, the body of a request is the file. At `/files`, files
are uploaded with forms, and browsers save downloads.

With `--auth`, rules decide who may do what. A request without credentials is that of `anonymous`.
401 asks for credentials, or for better ones; 403 names the right that is missing. `/health`,
`/ready` and `/file` itself answer everybody.

**A change** that was answered with 200 or 202 is on stable storage, unless the daemon runs with
`--durability none`. A file appears whole or not at all.

**A refusal** is a problem document (RFC 9457). Its `type` names the cause, for programs;
[/docs/problems](docs/problems) explains each. Its `detail` tells people what to do. A method that
the path does not take is refused with 405, a path that does not exist with 404.

**Every answer** has an `X-Request-ID`. The daemon's log has the same identifier.

*Try it out*, below, changes the real files of this daemon.
"""


def document() -> bytes:
    """Return the document, as JSON."""
    members = {
        "openapi": "3.1.0",
        "info": {
            "title": "httpnas",
            "version": __version__,
            "summary": "Network-attached storage over plain HTTP, for clients that have only curl",
            "description": _ABOUT,
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": ".", "description": "The daemon that serves this document"}],
        "tags": [
            {"name": "file", "description": "POST creates or replaces, PUT appends or moves."},
            {"name": "files", "description": "Forms and downloads, compatible with simple-fs."},
            {
                "name": "links",
                "description": "What a client may do, and URLs that need no credentials.",
            },
            {"name": "operations", "description": "About the daemon, for its operators."},
            {"name": "pages", "description": "For people."},
        ],
        "paths": {**_FILE, **_FILES, **_LINKS, **_OPERATIONS, **_PAGES},
        "components": {
            "schemas": SCHEMAS,
            "parameters": PARAMETERS,
            "headers": {name: header for name, (_, header) in HEADERS.items()},
            "responses": RESPONSES,
            "securitySchemes": _SCHEMES,
        },
        "security": [{}, *({name: []} for name in _SCHEMES)],
    }
    return json.dumps(members, ensure_ascii=False).encode()
