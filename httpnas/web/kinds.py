"""The kinds of problems: what programs tell one refusal from another by.

A code and its status never change their meaning: clients compare them. The page ``/docs/problems``
and the OpenAPI document are made from this table, and a test compares ``docs/api.md`` with it.
"""

from __future__ import annotations

from enum import Enum

#: Where the page is that has an anchor for each code.
PAGE = "/docs/problems"


class Kind(Enum):
    """What is wrong with a request.

    :ivar code: its name for programs.
    :ivar status: the status code of the answer.
    :ivar meaning: what has happened, in one sentence, as Markdown.
    :ivar remedy: what the client can do about it, as Markdown.
    """

    MALFORMED_REQUEST = (
        "malformed-request",
        400,
        "The request is not HTTP/1.1 as RFC 9112 defines it.",
        "Correct the client, or the proxy in front of the server.",
    )
    BAD_NAME = (
        "bad-name",
        400,
        "The name of a file or folder is not allowed.",
        "Choose another name; `detail` says which rule this one breaks.",
    )
    BAD_QUERY = (
        "bad-query",
        400,
        "A field of the query has a value that is not allowed.",
        "Correct the query; `detail` says which values are allowed.",
    )
    BAD_FIELD = (
        "bad-field",
        400,
        "A header of the request has a value that is not allowed.",
        "Correct the header that `detail` names.",
    )
    BAD_DIGEST_FIELD = (
        "bad-digest-field",
        400,
        "A digest header cannot be read, or two of them contradict each other.",
        "Write it as `sha-256=:BASE64:` (RFC 9530).",
    )
    DIGEST_MISMATCH = (
        "digest-mismatch",
        400,
        "The body does not have the digest that the request announced; nothing was changed.",
        "Send the body again.",
    )
    PARTIAL_BODY = (
        "partial-body",
        400,
        "The request has a `Content-Range`, but a body is never put into the middle of a file.",
        "To add the rest of a file, PUT it with `Upload-Offset`. Otherwise send the whole file.",
    )
    DIGEST_OF_FORM = (
        "digest-of-form",
        400,
        "The request has a digest of a form, which the server cannot check.",
        "Send the file to `/file/NAME`, or leave the digest out.",
    )
    BAD_FORM = (
        "bad-form",
        400,
        "The form is broken, or has no file.",
        "Correct the form. The files listed in `stored` need not be sent again.",
    )
    NOT_A_MOVE = (
        "not-a-move",
        400,
        "The body is JSON but does not say where to move the file.",
        'Send `{"path": "new/name"}`. To append JSON, send it as `application/x-ndjson`.',
    )
    NOT_A_LINK = (
        "not-a-link",
        400,
        "The body does not say which link to make.",
        'Send JSON such as `{"method": "GET", "path": "/a/file", "seconds": 3600}`; `detail` says '
        "what is wrong.",
    )
    UNAUTHENTICATED = (
        "unauthenticated",
        401,
        "The request needs credentials, or its credentials are wrong or have expired.",
        "Send good ones by a scheme that `WWW-Authenticate` names.",
    )
    MISSING_RIGHT = (
        "missing-right",
        403,
        "No rule gives the client the right that this needs.",
        "Ask the operator for the right, which is one of those in `rights`.",
    )
    LINK_REFUSED = (
        "link-refused",
        403,
        "The link in the query does not count: it was changed, has expired, is for another method, "
        "or its key or its signer is gone.",
        "Ask for another link; `detail` says why this one was refused.",
    )
    NOT_PERMITTED = (
        "not-permitted",
        403,
        "The server has no permission for this on the storage, or the storage is read-only.",
        "Ask the operator to check the permissions and the mount.",
    )
    RESERVED = (
        "reserved",
        403,
        "The name is the server's own folder, or the root, which clients cannot change.",
        "Choose another name.",
    )
    CROSS_SITE = (
        "cross-site",
        403,
        "A page of another site tried to change something.",
        "Ask the operator to name the site in `--cors-origins`.",
    )
    NO_SUCH_FILE = (
        "no-such-file",
        404,
        "No file or folder has this name; links and special files do not count.",
        "Check the name.",
    )
    NO_SUCH_PATH = (
        "no-such-path",
        404,
        "The server has nothing at this path.",
        "Files are below `/file/`.",
    )
    METHOD_NOT_ALLOWED = (
        "method-not-allowed",
        405,
        "This path does not take this method.",
        "Use one of the methods in `Allow`.",
    )
    HEADERS_TOO_SLOW = (
        "headers-too-slow",
        408,
        "The headers of the request did not arrive in time.",
        "Send the request again.",
    )
    BODY_TOO_SLOW = (
        "body-too-slow",
        408,
        "The body made too little progress for too long.",
        "Send the request again.",
    )
    IS_FOLDER = (
        "is-folder",
        409,
        "The name is a folder, but the request needs a file.",
        "Name a file in the folder.",
    )
    NOT_A_FOLDER = (
        "not-a-folder",
        409,
        "A part of the path is a file, but has to be a folder.",
        "Choose another path, or move the file away.",
    )
    NAME_TAKEN = (
        "name-taken",
        409,
        "The destination exists and cannot be replaced.",
        "Choose another destination, or remove what is there first.",
    )
    INTO_ITSELF = (
        "into-itself",
        409,
        "A folder cannot be moved into itself.",
        "Choose a destination outside the folder.",
    )
    OTHER_FILE_SYSTEM = (
        "other-file-system",
        409,
        "The name is on, or is a folder that holds, something that is mounted below the storage "
        "folder; or the file system moves nothing there, because a folder has a quota or a layer "
        "of its own.",
        "Choose a name outside that mount or folder. To move a file there, copy it.",
    )
    WRONG_OFFSET = (
        "wrong-offset",
        409,
        "The file does not have the length that `Upload-Offset` gives; nothing was appended.",
        "The answer's own `Upload-Offset` is the true length: go on from there.",
    )
    PRECONDITION_FAILED = (
        "precondition-failed",
        412,
        "The file is not in the version that a condition of the request asks for.",
        "Get the file's present `ETag`, and decide again.",
    )
    ALREADY_EXISTS = (
        "already-exists",
        412,
        "The name exists, but `If-None-Match` says that nothing may be replaced.",
        "Choose another name. After a lost answer, it may be your own file.",
    )
    BODY_TOO_LARGE = (
        "body-too-large",
        413,
        "The body is larger than the server accepts.",
        "Send less, or ask the operator to raise `--max-upload`.",
    )
    FILE_TOO_LARGE = (
        "file-too-large",
        413,
        "The file would be larger than the file system allows.",
        "Split the file.",
    )
    FORM_TOO_LARGE = (
        "form-too-large",
        413,
        "The names of the files in one form are too long in total.",
        "Send the files that are not in `stored` in another form.",
    )
    NAME_TOO_LONG = (
        "name-too-long",
        414,
        "The name is longer than 4,096 bytes.",
        "Choose a shorter name.",
    )
    TARGET_TOO_LONG = (
        "target-too-long",
        414,
        "The request line is longer than 8,192 bytes.",
        "Shorten the path or the query.",
    )
    ENCODED_BODY = (
        "encoded-body",
        415,
        "The body has a `Content-Encoding`, but the server stores bodies as they are.",
        "Send the body without `Content-Encoding`.",
    )
    NOT_A_FORM = (
        "not-a-form",
        415,
        "The body is not `multipart/form-data`.",
        "Send a form, or POST the file to `/file/NAME`.",
    )
    FORM_FOR_FILE = (
        "form-for-file",
        415,
        "The body is `multipart/form-data`, but this path stores bodies as they are.",
        "POST the form to `/files/`, or send the file by itself.",
    )
    RANGE_NOT_SATISFIABLE = (
        "range-not-satisfiable",
        416,
        "None of the requested ranges has a byte in the file.",
        "`Content-Range` has the length of the file: ask for bytes below it.",
    )
    UNKNOWN_EXPECTATION = (
        "unknown-expectation",
        417,
        "`Expect` asks for something else than `100-continue`.",
        "Send `Expect: 100-continue`, or leave the header out.",
    )
    WRONG_HOST = (
        "wrong-host",
        421,
        "The server does not answer to the name in `Host`.",
        "Use another name, or ask the operator to add this one to `--hosts`.",
    )
    KEY_REUSED = (
        "key-reused",
        422,
        "The `Idempotency-Key` is that of an append with another body; nothing was appended.",
        "Give each append a key of its own, and repeat it with the same body.",
    )
    TOO_MANY_FAILURES = (
        "too-many-failures",
        429,
        "The address of the client has presented too many wrong passwords or tokens.",
        "Correct the credentials, and try again after `Retry-After` seconds. Tokens, and passwords "
        "that were right of late, work meanwhile.",
    )
    HEADERS_TOO_LARGE = (
        "headers-too-large",
        431,
        "The headers have more than 100 lines or 16,384 bytes.",
        "Send fewer or shorter headers.",
    )
    SERVER_FAILED = (
        "server-failed",
        500,
        "The server failed because of an error of its own.",
        "Give the operator the `instance`: the server's log has it, with the cause.",
    )
    STORAGE_BROKEN = (
        "storage-broken",
        500,
        "The storage reported an error that does not go away by itself.",
        "Give the operator the `instance`: the server's log has it, with the cause.",
    )
    FILE_CUT_SHORT = (
        "file-cut-short",
        500,
        "The file became shorter while the server was reading it.",
        "Send the request again. Some other program changes the file in place.",
    )
    UNKNOWN_METHOD = (
        "unknown-method",
        501,
        "The server does not know the method; names of methods are case-sensitive.",
        "Write the method in capital letters.",
    )
    UNKNOWN_CODING = (
        "unknown-coding",
        501,
        "`Transfer-Encoding` asks for something else than `chunked`.",
        "Send the body chunked, or with its `Content-Length`.",
    )
    STORAGE_AWAY = (
        "storage-away",
        503,
        "The storage does not answer as it should.",
        "Try again after `Retry-After` seconds. Give appends an `Idempotency-Key`.",
    )
    STORAGE_TIMEOUT = (
        "storage-timeout",
        503,
        "The storage stopped answering during the request; its last step may still take effect.",
        "Look at the file, then try again. Repeat an append with its `Idempotency-Key`.",
    )
    NOT_WRITABLE = (
        "not-writable",
        503,
        "The health check could not write to the storage.",
        "Ask the operator to check the storage; `detail` says what failed.",
    )
    NOT_READY = (
        "not-ready",
        503,
        "The server is not ready for requests; `reasons` says why.",
        "Send requests to another replica, or wait.",
    )
    TOO_MANY_CONNECTIONS = (
        "too-many-connections",
        503,
        "The address of the client has as many connections as the operator allows.",
        "Close some, or use them again, and try again after `Retry-After` seconds.",
    )
    TOO_MANY_PASSWORDS = (
        "too-many-passwords",
        503,
        "More passwords wait to be checked than the server lets wait.",
        "Try again after `Retry-After` seconds, or use a token.",
    )
    ISSUER_AWAY = (
        "issuer-away",
        503,
        "The keys of the issuer of the token could not be fetched so far.",
        "Try again after `Retry-After` seconds; the operator finds the reason in the log.",
    )
    DRAINING = (
        "draining",
        503,
        "The server is stopping and takes no new requests.",
        "Try again after `Retry-After` seconds: another server may have taken its place.",
    )
    CONTENDED = (
        "contended",
        503,
        "Other clients kept changing this name until the time to wait was over.",
        "Try again later, or write to several files.",
    )
    OUT_OF_DESCRIPTORS = (
        "out-of-descriptors",
        503,
        "The server has no file descriptors or no memory left at the moment.",
        "Try again after `Retry-After` seconds.",
    )
    STORAGE_FULL = (
        "storage-full",
        507,
        "The storage has not enough space, inodes or quota left.",
        "Delete something, then try again.",
    )

    def __init__(self, code: str, status: int, meaning: str, remedy: str) -> None:
        self.code = code
        self.status = status
        self.meaning = meaning
        self.remedy = remedy

    @property
    def type(self) -> str:
        """The ``type`` of a problem document, a URI reference (RFC 9457 section 3.1.1)."""
        return f"{PAGE}#{self.code}"

    @classmethod
    def of_status(cls, status: int) -> Kind:
        """Return the kind of what the HTTP server refuses by itself with *status*."""
        return _OF_THE_SERVER[status]


#: What ``httpnas.web.server`` refuses: it knows statuses only, and means one kind by each.
_OF_THE_SERVER = {
    kind.status: kind
    for kind in (
        Kind.MALFORMED_REQUEST,
        Kind.METHOD_NOT_ALLOWED,
        Kind.HEADERS_TOO_SLOW,
        Kind.TARGET_TOO_LONG,
        Kind.UNKNOWN_EXPECTATION,
        Kind.HEADERS_TOO_LARGE,
        Kind.SERVER_FAILED,
        Kind.UNKNOWN_CODING,
        Kind.STORAGE_TIMEOUT,
    )
}
