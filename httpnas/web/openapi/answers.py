"""The answers, which many operations share."""

from __future__ import annotations

from collections.abc import Sequence

from httpnas.web.kinds import Kind
from httpnas.web.openapi.fields import HEADERS
from httpnas.web.openapi.schemas import TEXT, Json, object_of, ref_to, schema_of


def _answer(description: str, content: Json | None = None, *headers: str) -> Json:
    """Return an answer.

    :param content: schemas and examples by media type; None if there is no body.
    :param headers: names in :data:`HEADERS`, in addition to those that every answer has, or in
        place of one of them.
    """
    names = ("RequestID", "NoStore", "NoSniff", "ResourcePolicy", *headers)
    fields = {HEADERS[name][0]: ref_to("headers", name) for name in names}
    body = {} if content is None else {"content": content}
    return {"description": description, "headers": fields, **body}


def _of(status: int, *without: Kind) -> list[Kind]:
    """Return the kinds of problems that have *status*."""
    return [kind for kind in Kind if kind.status == status and kind not in without]


def _problem(
    kinds: Sequence[Kind], description: str, *headers: str, schema: str = "Problem"
) -> Json:
    """Return a refusal, whose ``type`` is that of one of *kinds*."""
    types = {"type": {"enum": [kind.type for kind in kinds]}}
    narrowed = {"allOf": [schema_of(schema)], "properties": types}
    return _answer(description, {"application/problem+json": {"schema": narrowed}}, *headers)


def json_of(schema: Json) -> Json:
    return {"application/json": {"schema": schema}}


def _is(word: str) -> Json:
    return json_of(object_of({"status": {"const": word}}, additionalProperties=False))


_DONE: Json = {"text/plain": {"schema": {"const": "OK"}}}
_PLAIN: Json = {"text/plain": {"schema": TEXT}}
_HTML: Json = {"text/html": {"schema": TEXT}}
_BYTES: Json = {"*/*": {"schema": {"description": "The bytes, of any type."}}}
_OF_A_FILE = ("ETag", "Changed", "Ranges", "NoCache", "Policy")
_OF_A_PART = (*_OF_A_FILE, "Part", "Digest")
_OF_A_PAGE = ("PageETag", "NoCache", "Policy", "Referrer")

_PART = "The requested bytes; several ranges are sent as `multipart/byteranges`."

RESPONSES: Json = {
    "Done": _answer("Done.", _DONE),
    "Methods": _answer("`Allow` lists the methods of this path.", None, "Allow"),
    "Listed": _answer(
        "The folder. As text, it has one name per line.",
        {
            "text/plain": {"schema": TEXT, "example": "done\nnumbers.txt\n"},
            **json_of(schema_of("Listing")),
            **_HTML,
        },
        "Vary",
        "NoCache",
        "Policy",
    ),
    "FileOrListing": _answer(
        "The file, with the media type of its extension (none if the extension is unknown); or "
        "the folder, in one of three forms.",
        {
            "text/plain": {
                "schema": TEXT,
                "examples": {
                    "file": {"summary": "A file", "value": "1\n2\n3\n4\n5\n"},
                    "folder": {"summary": "A folder", "value": "done\nnumbers.txt\n"},
                },
            },
            **json_of(
                {
                    "anyOf": [
                        schema_of("Listing"),
                        {"title": "File", "description": "Any JSON file."},
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
        "NoCache",
        "Policy",
    ),
    "Part": _answer(_PART, _BYTES, *_OF_A_PART),
    "NotModified": _answer("The client has this version already.", None, *_OF_A_FILE),
    "Attachment": _answer("The file.", _BYTES, *_OF_A_FILE, "Digest", "Attached"),
    "AttachmentPart": _answer(_PART, _BYTES, *_OF_A_PART, "Attached"),
    "AttachmentNotModified": _answer(
        "The client has this version already.", None, *_OF_A_FILE, "Attached"
    ),
    "IntoFolder": _answer(
        "The folder was requested as HTML, but its path does not end in a slash.",
        _PLAIN,
        "Location",
        "Vary",
    ),
    "Lines": _answer(
        "The number of newlines.",
        {"text/plain": {"schema": {"type": "string", "pattern": "^[0-9]+$"}, "example": "5"}},
    ),
    "Stored": _answer("The file has this content now. `ETag` is its version.", _DONE, "ETag"),
    "AppendedOrMoved": _answer(
        "The body was appended, or the file was moved.", _DONE, "NewETag", "NewLength"
    ),
    "FormStored": _answer(
        "The files are stored. The status is 202 because simple-fs answers so.",
        {**json_of(schema_of("Message")), **_HTML},
        "PagePolicy",
    ),
    "Alive": _answer("The daemon is alive, whatever the state of its storage.", _is("alive")),
    "Ready": _answer("The daemon is ready.", _is("ready")),
    "Metrics": _answer(
        "The metrics.",
        {
            "text/plain": {
                "schema": TEXT,
                "example": "httpnas_connections 3.0\ndisk_used 0.42\n",
            },
            "application/openmetrics-text": {"schema": TEXT},
        },
    ),
    "Transfers": _answer(
        "The transfers that run, and those that ended.", json_of(schema_of("Transfers"))
    ),
    "Page": _answer("The page.", _HTML, *_OF_A_PAGE),
    "Document": _answer(
        "This document.", json_of({"type": "object", "required": ["openapi"]}), *_OF_A_PAGE
    ),
    "PageNotModified": _answer(
        "The client has it already.", None, "PageETag", "NoCache", "Referrer"
    ),
    "Rights": _answer("Who the client is, and what it may do.", json_of(schema_of("Rights"))),
    "Linked": _answer("The link, and when it expires.", json_of(schema_of("Link"))),
    # Refusals
    "BadRequest": _problem(
        _of(400),
        "The request cannot be understood: the name, the query or a header is wrong, a digest does "
        "not match, the JSON is not a move, the form is broken, or it is not HTTP.",
    ),
    "Unauthenticated": _problem(
        _of(401), "The request needs credentials (`--auth`), or has wrong ones.", "Challenges"
    ),
    "Forbidden": _problem(
        _of(403),
        "A right is missing, or the request would change the daemon's own folder or the root, or "
        "the permissions of the storage forbid it, or it comes from a page of another site.",
    ),
    "NotFound": _problem(_of(404), "There is nothing at this name, or a link or a special file."),
    "MethodNotAllowed": _problem(
        _of(405), "A name that ends in `/wc` or `/mv` takes other methods.", "Allow"
    ),
    "Timeout": _problem(_of(408), "The headers or the body made no progress for too long."),
    "Conflict": _problem(
        _of(409, Kind.WRONG_OFFSET),
        "There is a folder where a file is needed, or the other way round.",
    ),
    "AppendConflict": _problem(
        _of(409),
        "The file does not have the expected length; or there is a folder where a file is needed, "
        "or the other way round.",
        "TrueLength",
    ),
    "ConditionFailed": _problem(_of(412), "A condition does not hold."),
    "TooLarge": _problem(
        _of(413), "The body is larger than the daemon (`--max-upload`) or the file system accepts."
    ),
    "TargetTooLong": _problem(
        _of(414), "The request line has more than 8,192 bytes, or the name more than 4,096."
    ),
    "Encoded": _problem(
        _of(415, Kind.NOT_A_FORM),
        "The body has a `Content-Encoding`, or is a form; bodies are stored as they are.",
        "Uncoded",
    ),
    "NotAForm": _problem(
        _of(415, Kind.FORM_FOR_FILE),
        "The body is not a form, or has a `Content-Encoding`.",
        "FormOnly",
        "Uncoded",
    ),
    "NoSuchRange": _problem(
        _of(416), "No range has a byte in the file.", "Whole", "Ranges", "Policy"
    ),
    "NotExpected": _problem(_of(417), "`Expect` asks for something else than `100-continue`."),
    "KeyReused": _problem(_of(422), "The `Idempotency-Key` was used for another body."),
    "OtherHost": _problem(
        _of(421), "The daemon does not answer to the name in `Host` (`--hosts`)."
    ),
    "TooManyFailures": _problem(
        _of(429), "Too many credentials from this address were wrong.", "RetryAfter"
    ),
    "HeadersTooLarge": _problem(_of(431), "The headers have more than 100 lines or 16,384 bytes."),
    "Failed": _problem(_of(500), "The daemon or its storage failed; the log says how."),
    "NotImplemented": _problem(
        _of(501), "The method is in small letters, or `Transfer-Encoding` is not `chunked`."
    ),
    "Busy": _problem(
        _of(503, Kind.NOT_READY, Kind.NOT_WRITABLE),
        "The storage does not answer as it should, other clients keep changing the name, or the "
        "daemon is stopping.",
        "RetryAfter",
    ),
    "NotWritable": _problem(
        _of(503, Kind.NOT_READY, Kind.CONTENDED, Kind.OUT_OF_DESCRIPTORS),
        "The storage cannot be written to, or the daemon is stopping.",
        "RetryAfter",
    ),
    "NotReady": _problem(
        [Kind.NOT_READY], "Send no requests here for now.", "RetryAfter", schema="NotReady"
    ),
    "Full": _problem(_of(507), "There is not enough space left."),
}
