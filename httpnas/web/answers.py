"""Short answers: a few bytes, JSON, or a problem document."""

from __future__ import annotations

import json

from httpnas.transfer.sender import BLOCK, Sender, Text
from httpnas.web.problems import PROBLEM, Problem, document
from httpnas.web.request import Request


def answer(
    request: Request,
    body: bytes = b"OK",
    status: int = 200,
    content_type: bytes = b"text/plain; charset=utf-8",
) -> None:
    """Answer *request* with *body*, if there is still somebody to answer."""
    if request.gone or request.finished:
        return
    request.setResponseCode(status)
    if status != 204:
        request.setHeader(b"Content-Type", content_type)
        request.setHeader(b"Content-Length", b"%d" % len(body))
    if len(body) <= BLOCK or request.method == b"HEAD":
        request.write(body)
        request.finish()
    else:
        request.sending = Sender().beginFileTransfer(Text(body), request)


def answer_json(request: Request, members: object, status: int = 200) -> None:
    """Answer *request* with *members* as JSON, if there is still somebody to answer."""
    body = json.dumps(members, ensure_ascii=False).encode()
    answer(request, body, status, b"application/json")


def answer_problem(request: Request, problem: Problem) -> None:
    """Answer *request* with *problem*'s document, or cut it off when its answer has begun."""
    request.problem = problem.kind.code
    request.refuse(
        problem.status,
        PROBLEM,
        document(problem, request.id, request.problem_members),
        *((name.encode(), value.encode()) for name, value in problem.headers.items()),
    )
