"""Headers of requests and answers, queries and names."""

from __future__ import annotations

from httpnas.web.openapi.schemas import (
    COUNT,
    HERE,
    IDENTITY,
    TAG,
    TAGS,
    TEXT,
    UUID,
    Json,
    schema_of,
    text_like,
)


def _parameter(place: str, name: str, description: str, schema: Json, **more: object) -> Json:
    return {"name": name, "in": place, "description": description, **more, "schema": schema}


def _field(name: str, description: str, schema: Json) -> Json:
    return _parameter("header", name, description, schema)


def _name(description: str, example: str) -> Json:
    # An example of the parameter is what a page to try things out begins with; one of its schema
    # is only shown, so that no condition or range is sent that nobody has asked for.
    schema = {"type": "string", "minLength": 1, "maxLength": 4096}
    return _parameter("path", "name", description, schema, required=True, example=example)


PARAMETERS: Json = {
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
        text_like("numbers.txt"),
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
        text_like(
            "bytes=0-3",
            "bytes=-2",
            "bytes=1000-",
            pattern="^bytes=([0-9]+-[0-9]*|-[0-9]+)(, *([0-9]+-[0-9]*|-[0-9]+))*$",
        ),
    ),
    "IfRange": _field(
        "If-Range",
        "`Range` counts only when this is the file's `ETag` or `Last-Modified`; else all is sent.",
        text_like(TAG),
    ),
    "IfMatch": _field(
        "If-Match",
        "412 unless the file's entity tag is among these; `*` is any file.",
        text_like(TAG, "*", pattern=TAGS),
    ),
    "IfUnmodifiedSince": _field(
        "If-Unmodified-Since",
        "412 when the file was changed later. `If-Match` goes before it.",
        schema_of("HttpDate"),
    ),
    "IfNoneMatch": _field(
        "If-None-Match",
        "304 when the file's entity tag is among these; `*` is any file.",
        text_like(TAG, "*", pattern=TAGS),
    ),
    "IfModifiedSince": _field(
        "If-Modified-Since",
        "304 unless the file was changed later. `If-None-Match` goes before it.",
        schema_of("HttpDate"),
    ),
    "UnlessMatch": _field(
        "If-None-Match",
        "412 when the file's entity tag is among these. With `*`, nothing is ever replaced.",
        text_like("*", pattern=TAGS),
    ),
    "WantReprDigest": _field(
        "Want-Repr-Digest",
        "Asks for a digest of the whole file (RFC 9530), the one with the greater number.",
        text_like(
            "sha-256=1",
            "sha-512=10, sha-256=1",
            pattern="^sha-(256|512)=(10|[0-9])(, *sha-(256|512)=(10|[0-9]))*$",
        ),
    ),
    "ContentDigest": _field(
        "Content-Digest",
        "A digest of the body (RFC 9530). When it does not match, nothing is changed: 400.",
        schema_of("Digests"),
    ),
    "ReprDigest": _field("Repr-Digest", "As `Content-Digest`.", schema_of("Digests")),
    "ContentMD5": _field(
        "Content-MD5",
        "As `Content-Digest`, by MD5 (RFC 1864).",
        text_like("1B2M2Y8AsgTpgAmY7PhCfg==", pattern="^[A-Za-z0-9+/]{21}[AQgw]==$"),
    ),
    "UploadOffset": _field(
        "Upload-Offset",
        "How many bytes the file must have; else 409, with the true number.",
        {**COUNT, "maximum": (1 << 63) - 1, "examples": [10]},
    ),
    "IdempotencyKey": _field(
        "Idempotency-Key",
        "Made up by the client: what comes twice with one key is appended once, and answered "
        "twice. A file remembers its latest 48.",
        text_like("task-7", minLength=1, maxLength=255),
    ),
    "RequestID": _field(
        "X-Request-ID",
        "What the log is to call the request.",
        text_like("job-17.upload", pattern=f"^{IDENTITY}$"),
    ),
    "Traceparent": _field(
        "traceparent",
        "W3C Trace Context. Its trace-id is what the log calls a request without `X-Request-ID`.",
        text_like(
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
        text_like(HERE),
    ),
}


# Headers of answers


def _header(name: str, description: str, schema: Json, required: bool = True) -> tuple[str, Json]:
    return name, {"description": description, "required": required, "schema": schema}


#: By what they are called here, as one header may mean this or that: the header, and what it is.
HEADERS: dict[str, tuple[str, Json]] = {
    "RequestID": _header(
        "X-Request-ID", "What the log calls the request.", text_like(UUID, pattern=f"^{IDENTITY}$")
    ),
    "ETag": _header("ETag", "The version of the file.", schema_of("EntityTag")),
    "FileETag": _header("ETag", "The version of a file.", schema_of("EntityTag"), False),
    "NewETag": _header("ETag", "The version now; not of a move.", schema_of("EntityTag"), False),
    "Changed": _header("Last-Modified", "When the file was changed.", schema_of("HttpDate")),
    "FileChanged": _header("Last-Modified", "Of a file.", schema_of("HttpDate"), False),
    "Ranges": _header("Accept-Ranges", "`Range` is understood.", {"const": "bytes"}),
    "FileRanges": _header("Accept-Ranges", "Of a file.", {"const": "bytes"}, False),
    "Digest": _header("Repr-Digest", "Of the whole file.", schema_of("Digests"), False),
    "Part": _header(
        "Content-Range",
        "Which bytes these are. Of several ranges, each part tells that of itself.",
        text_like("bytes 0-3/10", pattern="^bytes [0-9]+-[0-9]+/[0-9]+$"),
        False,
    ),
    "Whole": _header(
        "Content-Range", "How long it is.", text_like("bytes */10", pattern=r"^bytes \*/[0-9]+$")
    ),
    "Attached": _header(
        "Content-Disposition",
        "Has a browser save the file, under a name that tells the time too.",
        text_like(
            'attachment; filename="download_20231114221320_numbers.txt"',
            pattern='^attachment; filename="',
        ),
    ),
    "NewLength": _header("Upload-Offset", "The length now; not of a move.", COUNT, False),
    "TrueLength": _header("Upload-Offset", "The length, if another was expected.", COUNT, False),
    "Location": _header(
        "Location", "The folder's own path.", text_like("/file/demo/", pattern=r"^[^?]*/(\?.*)?$")
    ),
    "Vary": _header("Vary", "What else than the path decides.", text_like("Accept")),
    "FolderVary": _header("Vary", "What else than the path decides.", text_like("Accept"), False),
    "Allow": _header(
        "Allow", "What can be done here.", text_like("GET, HEAD", pattern="^[A-Z]+(, [A-Z]+)*$")
    ),
    "RetryAfter": _header("Retry-After", "In seconds.", {"type": "integer", "minimum": 1}),
    "Uncoded": _header("Accept-Encoding", "What is taken.", {"const": "identity"}, False),
    "FormOnly": _header("Accept-Post", "What is taken.", {"const": "multipart/form-data"}, False),
    "NoStore": _header("Cache-Control", "It is another one soon.", {"const": "no-store"}),
    "NoCache": _header("Cache-Control", "To be asked for anew.", {"const": "no-cache"}),
    "NoSniff": _header("X-Content-Type-Options", "The type is true.", {"const": "nosniff"}),
    "Policy": _header("Content-Security-Policy", "What a browser may do with it.", TEXT),
    "PagePolicy": _header("Content-Security-Policy", "Of the HTML.", TEXT, False),
    "Referrer": _header("Referrer-Policy", "Links tell nobody else.", {"const": "same-origin"}),
}
