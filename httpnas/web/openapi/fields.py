"""Headers of requests and answers, query fields and names."""

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
    # A page for trying things out fills in the example of a parameter, but only shows the example
    # of a schema. So it sends no condition or range that nobody has asked for.
    schema = {"type": "string", "minLength": 1, "maxLength": 4096}
    return _parameter("path", "name", description, schema, required=True, example=example)


PARAMETERS: Json = {
    "Name": _name(
        "The path of a file or folder from the root, percent-encoded. A slash may also be written "
        "as `%2F`.",
        "demo/numbers.txt",
    ),
    "FormName": _name(
        "The file to download, or the folder for the files of a form, percent-encoded. A slash "
        "may also be written as `%2F`.",
        "demo",
    ),
    "Sort": _parameter(
        "query",
        "sort",
        "The key by which entries are sorted. Names are compared byte by byte.",
        {"type": "string", "enum": ["name", "size", "mtime"], "default": "name"},
    ),
    "Order": _parameter(
        "query",
        "order",
        "Ascending or descending.",
        {"type": "string", "enum": ["asc", "desc"], "default": "asc"},
    ),
    "Limit": _parameter(
        "query",
        "limit",
        "The greatest number of entries to send. Sorted by `name`, the default is all. Sorted by "
        "`size` or `mtime`, it is at most 10,000; the default for JSON is 1,000, and text and HTML "
        "require it.",
        {"type": "integer", "minimum": 1, "maximum": 999999999, "examples": [100]},
    ),
    "After": _parameter(
        "query",
        "after",
        "Where to continue: the `next` of the previous page, with the same `sort` and `order`.",
        text_like("numbers.txt"),
    ),
    "RightsPath": _parameter(
        "query",
        "path",
        "The path of a file or folder, which need not exist; without it, the root.",
        text_like("demo"),
    ),
    "Anonymous": _parameter(
        "query",
        "anonymous",
        "With `no`, a request without credentials is answered with 401. So a page can make its "
        "browser ask for a password.",
        {"type": "string", "enum": ["yes", "no"], "default": "yes"},
    ),
    "Latest": _parameter(
        "query",
        "limit",
        "The greatest number of ended transfers to show; the daemon remembers 1,000.",
        {"type": "integer", "minimum": 1, "maximum": 999999999, "examples": [10]},
    ),
    "Range": _field(
        "Range",
        "The bytes to send: up to 16 ranges that do not overlap. A malformed header is ignored.",
        text_like(
            "bytes=0-3",
            "bytes=-2",
            "bytes=1000-",
            pattern="^bytes=([0-9]+-[0-9]*|-[0-9]+)(, *([0-9]+-[0-9]*|-[0-9]+))*$",
        ),
    ),
    "IfRange": _field(
        "If-Range",
        "`Range` applies only if this is the file's `ETag`; otherwise the whole file is sent.",
        text_like(TAG),
    ),
    "IfMatch": _field(
        "If-Match",
        "The answer is 412 unless the file's entity tag is among these; `*` stands for any file.",
        text_like(TAG, "*", pattern=TAGS),
    ),
    "IfUnmodifiedSince": _field(
        "If-Unmodified-Since",
        "The answer is 412 if the file was changed later. Ignored if there is an `If-Match`.",
        schema_of("HttpDate"),
    ),
    "IfNoneMatch": _field(
        "If-None-Match",
        "The answer is 304 if the file's entity tag is among these; `*` stands for any file.",
        text_like(TAG, "*", pattern=TAGS),
    ),
    "IfModifiedSince": _field(
        "If-Modified-Since",
        "The answer is 304 unless the file was changed later. Ignored if there is an "
        "`If-None-Match`.",
        schema_of("HttpDate"),
    ),
    "UnlessMatch": _field(
        "If-None-Match",
        "The answer is 412 if the file's entity tag is among these. With `*`, nothing is replaced.",
        text_like("*", pattern=TAGS),
    ),
    "WantReprDigest": _field(
        "Want-Repr-Digest",
        "Requests a digest of the whole file (RFC 9530): the one with the greatest number.",
        text_like(
            "sha-256=1",
            "sha-512=10, sha-256=1",
            pattern="^sha-(256|512)=(10|[0-9])(, *sha-(256|512)=(10|[0-9]))*$",
        ),
    ),
    "ContentDigest": _field(
        "Content-Digest",
        "A digest of the body (RFC 9530). If it does not match, the answer is 400 and nothing is "
        "changed.",
        schema_of("Digests"),
    ),
    "ReprDigest": _field("Repr-Digest", "The same as `Content-Digest`.", schema_of("Digests")),
    "ContentMD5": _field(
        "Content-MD5",
        "The same as `Content-Digest`, with MD5 (RFC 1864).",
        text_like("1B2M2Y8AsgTpgAmY7PhCfg==", pattern="^[A-Za-z0-9+/]{21}[AQgw]==$"),
    ),
    "UploadOffset": _field(
        "Upload-Offset",
        "The length in bytes that the file must have; otherwise the answer is 409, with the true "
        "length.",
        {**COUNT, "maximum": (1 << 63) - 1, "examples": [10]},
    ),
    "IdempotencyKey": _field(
        "Idempotency-Key",
        "A key that the client makes up. A body that is sent twice with one key is appended once, "
        "and answered twice; another body with that key is refused (422). A file remembers its "
        "latest 48 keys.",
        text_like("task-7", minLength=1, maxLength=255),
    ),
    "RequestID": _field(
        "X-Request-ID",
        "The identifier of the request, for the log.",
        text_like("job-17.upload", pattern=f"^{IDENTITY}$"),
    ),
    "Traceparent": _field(
        "traceparent",
        "W3C Trace Context. Its trace-id is the identifier of a request without `X-Request-ID`.",
        text_like(
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            pattern="^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$",
        ),
    ),
    "Expect": _field(
        "Expect",
        "The client waits for `100 Continue` before it sends the body, so that a refusal can come "
        "first. Pages in a browser cannot set it.",
        {"type": "string", "enum": ["100-continue"]},
    ),
    "Origin": _field(
        "Origin",
        "Browsers set it; their pages cannot. A page of another site may not change anything (403) "
        "unless `--cors-origins` names that site.",
        text_like(HERE),
    ),
}


# Headers of answers


def _header(name: str, description: str, schema: Json, required: bool = True) -> tuple[str, Json]:
    return name, {"description": description, "required": required, "schema": schema}


#: The headers, under names of our own: one header may mean different things in different answers.
HEADERS: dict[str, tuple[str, Json]] = {
    "RequestID": _header(
        "X-Request-ID",
        "The identifier of the request in the log.",
        text_like(UUID, pattern=f"^{IDENTITY}$"),
    ),
    "ETag": _header("ETag", "The version of the file.", schema_of("EntityTag")),
    "PageETag": _header(
        "ETag", "The version of the page.", text_like(f"W/{TAG}", pattern='^(W/)?"[!-~]+"$')
    ),
    "FileETag": _header("ETag", "The version, if it is a file.", schema_of("EntityTag"), False),
    "NewETag": _header(
        "ETag", "The new version, if it was an append.", schema_of("EntityTag"), False
    ),
    "Changed": _header("Last-Modified", "The time of the last change.", schema_of("HttpDate")),
    "FileChanged": _header(
        "Last-Modified",
        "The time of the last change, if it is a file.",
        schema_of("HttpDate"),
        False,
    ),
    "Ranges": _header("Accept-Ranges", "`Range` is supported.", {"const": "bytes"}),
    "FileRanges": _header(
        "Accept-Ranges", "`Range` is supported, if it is a file.", {"const": "bytes"}, False
    ),
    "Digest": _header("Repr-Digest", "The digest of the whole file.", schema_of("Digests"), False),
    "Part": _header(
        "Content-Range",
        "The range of these bytes. With several ranges, each part has its own.",
        text_like("bytes 0-3/10", pattern="^bytes [0-9]+-[0-9]+/[0-9]+$"),
        False,
    ),
    "Whole": _header(
        "Content-Range",
        "The length of the file.",
        text_like("bytes */10", pattern=r"^bytes \*/[0-9]+$"),
    ),
    "Attached": _header(
        "Content-Disposition",
        "Makes a browser save the file, under a name with the time in it.",
        text_like(
            'attachment; filename="download_20231114221320_numbers.txt"',
            pattern='^attachment; filename="',
        ),
    ),
    "NewLength": _header("Upload-Offset", "The new length, if it was an append.", COUNT, False),
    "TrueLength": _header(
        "Upload-Offset", "The true length, if another one was expected.", COUNT, False
    ),
    "Location": _header(
        "Location",
        "The folder's own path, relative to the requested one.",
        text_like("./demo/", pattern=r"^\./[^/?]*/(\?.*)?$"),
    ),
    "Vary": _header("Vary", "What the answer depends on besides the path.", text_like("Accept")),
    "FolderVary": _header(
        "Vary", "What the answer depends on besides the path.", text_like("Accept"), False
    ),
    "Allow": _header(
        "Allow", "The methods of this path.", text_like("GET, HEAD", pattern="^[A-Z]+(, [A-Z]+)*$")
    ),
    "RetryAfter": _header(
        "Retry-After", "When to try again, in seconds.", {"type": "integer", "minimum": 1}
    ),
    "Challenges": _header(
        "WWW-Authenticate",
        "The schemes that work (RFC 9110 section 11.6.1).",
        text_like('Basic realm="httpnas", charset="UTF-8", Bearer realm="httpnas"'),
    ),
    "Uncoded": _header("Accept-Encoding", "What the server accepts.", {"const": "identity"}, False),
    "FormOnly": _header(
        "Accept-Post", "What the server accepts.", {"const": "multipart/form-data"}, False
    ),
    "NoStore": _header("Cache-Control", "The answer is about the moment.", {"const": "no-store"}),
    "NoCache": _header(
        "Cache-Control", "Caches ask before they use a copy.", {"const": "no-cache"}
    ),
    "NoSniff": _header(
        "X-Content-Type-Options", "Browsers must not guess the type.", {"const": "nosniff"}
    ),
    "ResourcePolicy": _header(
        "Cross-Origin-Resource-Policy",
        "Whose pages may show this (`--resource-policy`).",
        {"enum": ["same-origin", "same-site", "cross-origin"]},
    ),
    "Policy": _header("Content-Security-Policy", "What a browser may do with the content.", TEXT),
    "PagePolicy": _header("Content-Security-Policy", "The policy of the HTML.", TEXT, False),
    "Referrer": _header(
        "Referrer-Policy",
        "Links do not tell other sites about this page.",
        {"const": "same-origin"},
    ),
}
