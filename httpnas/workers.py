"""Several processes behind the same sockets: a parent that opens them, and its workers.

One process runs Python on one core. With ``--workers N``, the parent opens the listening sockets,
starts N processes that inherit them, and accepts nothing itself. Each worker is a daemon by itself,
with a storage and a lease of its own: what keeps daemons on one storage apart keeps workers apart.

All workers wait at the same socket, so that none of its connections is lost with one of them, and
who is idle takes the next one. Each takes one connection at a time, or the first to wake would take
all that wait.

Parent and worker are connected by a pair of sockets, over which either asks the other for something
(:class:`Peer`). A worker that is asked for what all know, such as its metrics, asks the parent, who
asks the others. And its end tells a worker that the parent is gone.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import count
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList, ensureDeferred, maybeDeferred, succeed
from twisted.internet.interfaces import IListeningPort
from twisted.internet.protocol import Factory, ProcessProtocol, connectionDone
from twisted.internet.tcp import Port
from twisted.logger import Logger
from twisted.protocols.basic import Int32StringReceiver
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure

from httpnas.endpoints import endpoint

#: In the environment of a worker: the descriptor of its line to the parent, and descriptor and
#: address family of each socket, as ``3 4:2 5:10``.
VARIABLE = "HTTPNAS_WORKER"
#: Seconds that a worker has to answer what another one asks.
PATIENCE = 2.0
#: Seconds between the end of a worker and the start of the next one, at first and at most.
_PAUSE, _LONGEST_PAUSE = 0.1, 10.0
#: Seconds after which a worker is no longer one that fails at its start.
_PROVEN = 10.0
#: Seconds beside the drain that workers have to end.
_LAST = 15.0
#: Runs ``twistd`` without looking for modules in the working directory, where clients may store.
_RUN = "import sys; del sys.path[0]; from twisted.scripts.twistd import run; run()"

#: Answers what is asked for, by name; gets what came with the question.
Answers = Mapping[str, Callable[[Any], Awaitable[Any]]]


class Peer(Int32StringReceiver):
    """One end of a line over which both sides ask and answer, in JSON.

    :param answer: returns the answer to what is asked for, with what came with the question.
    :param gone: is called when the other side is gone.
    """

    MAX_LENGTH = 64 << 20
    _log = Logger()

    def __init__(
        self, answer: Callable[[str, Any], Deferred[Any]], gone: Callable[[], object]
    ) -> None:
        self._answer = answer
        self._gone = gone
        self._serial = count()
        self._asked: dict[int, Deferred[Any]] = {}

    def ask(self, what: str, argument: Any = None) -> Deferred[Any]:
        """Return the answer of the other side; None when it is gone, or cannot answer."""
        if not self.connected:
            return succeed(None)
        number = next(self._serial)
        self._asked[number] = asked = Deferred[Any](lambda _: self._forget(number))
        self._send(number=number, what=what, argument=argument)
        return asked

    def _forget(self, number: int) -> None:
        del self._asked[number]

    def _send(self, **message: Any) -> None:
        self.sendString(json.dumps(message).encode())  # type: ignore[no-untyped-call]

    def stringReceived(self, string: bytes) -> None:
        """Take a question or an answer."""
        message = json.loads(string)
        number = message["number"]
        if "what" in message:
            answered = maybeDeferred(self._answer, message["what"], message["argument"])
            answered.addErrback(self._fail, message["what"])
            answered.addCallback(lambda answer: self._send(number=number, answer=answer))
        elif (asked := self._asked.pop(number, None)) is not None:
            asked.callback(message["answer"])

    def _fail(self, failure: Failure, what: str) -> None:
        self._log.failure("cannot tell other workers: {what}", failure, what=what)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Note that nothing more will be answered."""
        super().connectionLost(reason)
        asked, self._asked = self._asked, {}
        for each in asked.values():
            each.callback(None)
        self._gone()


def _connect(reactor: Any, end: socket.socket, peer: Peer) -> Peer:
    end.setblocking(False)
    factory = Factory.forProtocol(lambda: peer)
    factory.noisy = False
    reactor.adoptStreamConnection(end.fileno(), socket.AF_UNIX, factory)
    end.close()
    return peer


# In a worker


class Inheritance:
    """What a worker has from its parent.

    :param value: of :data:`VARIABLE`.
    """

    def __init__(self, reactor: Any, value: str) -> None:
        line, *sockets = value.split()
        self._reactor = reactor
        self._line = int(line)
        self._sockets = [tuple(map(int, each.split(":"))) for each in sockets]
        self._peer: Peer | None = None

    def endpoint(self, number: int, description: str) -> Any:
        """Return the endpoint for the *number*-th socket, which the parent made as *description*.

        What wraps connections, such as TLS, is made anew.
        """
        fd, family = self._sockets[number]
        if description.startswith(("*:", "systemd:")):
            description = "tcp:0"
        return endpoint(_Adopting(self._reactor, fd, family), description)

    def connect(self, answers: Answers, gone: Callable[[], object]) -> None:
        """Tell the parent that this worker serves; *answers* are for what the others ask.

        :param gone: is called when the parent is gone.
        """

        def answer(what: str, argument: Any) -> Deferred[Any]:
            return ensureDeferred(answers[what](argument))  # type: ignore[arg-type]

        self._peer = Peer(answer, gone)
        _connect(self._reactor, socket.socket(fileno=self._line), self._peer)
        self._peer.ask("serves")

    async def ask(self, what: str, argument: Any = None) -> list[Any]:
        """Return what each of the other workers answers; None for one that does not."""
        answers = None if self._peer is None else await self._peer.ask(what, argument)
        return answers or []


class _Adopting:
    """A reactor for one endpoint, which listens at a socket that is there already."""

    def __init__(self, reactor: Any, fd: int, family: int) -> None:
        self._reactor = reactor
        self._fd = fd
        self._family = family

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    def listenTCP(self, port: int, factory: Any, *args: Any, **kwargs: Any) -> IListeningPort:
        adopted: Port = self._reactor.adoptStreamPort(self._fd, self._family, factory)
        os.close(self._fd)
        real = adopted.doRead

        def accept_one() -> None:
            adopted.numberAccepts = 1
            real()  # type: ignore[no-untyped-call]

        adopted.doRead = accept_one  # type: ignore[method-assign]
        return adopted

    def listenUNIX(self, address: str, factory: Any, *args: Any, **kwargs: Any) -> IListeningPort:
        return self.listenTCP(0, factory)

    def listenSSL(
        self, port: int, factory: Any, contextFactory: Any, *args: Any, **kwargs: Any
    ) -> IListeningPort:
        return self.listenTCP(port, TLSMemoryBIOFactory(contextFactory, False, factory))


def inheritance(reactor: Any) -> Inheritance | None:
    """Return what this process has from its parent, None when it is no worker."""
    value = os.environ.pop(VARIABLE, None)
    return None if value is None else Inheritance(reactor, value)


# In the parent


class _Worker(ProcessProtocol):
    """One worker process after the other.

    :ivar peer: the line to the present one; None until it serves.
    """

    def __init__(self, parent: Workers, number: int) -> None:
        self._parent = parent
        self.number = number
        self.peer: Peer | None = None
        self.ended: Deferred[None] | None = None
        self._tail = b""
        self._pause = _PAUSE
        self._since = 0.0

    def start(
        self, reactor: Any, command: Sequence[str], sockets: Sequence[IListeningPort]
    ) -> None:
        """Start a process."""
        ours, theirs = socket.socketpair()
        peer = Peer(self._answer, self._line_lost)
        _connect(reactor, ours, peer)
        self._new_peer = peer
        fds = {0: 0, 1: 1, 2: 2, 3: theirs.fileno()}
        named = ["3"]
        for fd, port in enumerate(sockets, 4):
            fds[fd] = port.fileno()  # type: ignore[attr-defined]
            named.append(f"{fd}:{int(port.socket.family)}")  # type: ignore[attr-defined]
        if self._parent.takes_lines is not None:
            fds[1] = "r"  # type: ignore[assignment]
        self.ended = Deferred()
        self._since = reactor.seconds()
        env = {**os.environ, VARIABLE: " ".join(named)}
        reactor.spawnProcess(self, sys.executable, command, env, childFDs=fds)
        theirs.close()

    def _answer(self, what: str, argument: Any) -> Deferred[Any]:
        if what == "serves":
            self.peer = self._new_peer
            self._parent.serves(self)
            return succeed(None)
        return self._parent.ask_others(self, what, argument)

    def _line_lost(self) -> None:
        self.peer = None

    def outReceived(self, data: bytes) -> None:
        """Hand on lines of the log."""
        assert self._parent.takes_lines is not None
        lines, newline, self._tail = (self._tail + data).rpartition(b"\n")
        if newline:
            self._parent.takes_lines((lines + newline).decode(errors="backslashreplace"))

    def send(self, number: signal.Signals) -> None:
        """Send a signal, if there is a process."""
        if self.transport is not None and self.transport.pid is not None:
            os.kill(self.transport.pid, number)

    def processEnded(self, reason: Failure) -> None:
        """Tell the parent."""
        assert self.ended is not None
        ended, self.ended = self.ended, None
        self.peer = None
        ended.callback(None)
        self._parent.worker_ended(self, reason)

    def next_pause(self, now: float) -> float:
        """Return how many seconds to wait until the next process is started."""
        if now - self._since > _PROVEN:
            self._pause = _PAUSE
        pause, self._pause = self._pause, min(2 * self._pause, _LONGEST_PAUSE)
        return pause


class Workers(Service):
    """The parent: opens the sockets, starts and watches the workers, and ends with them.

    :param arguments: of ``httpnas`` for each worker, beside those of the parent.
    :param listen: descriptions of endpoints.
    :param drain: seconds that running transfers have to finish.
    :ivar takes_lines: takes what the workers log; None when they share the parent's output.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        number: int,
        arguments: Sequence[str],
        listen: Sequence[str],
        drain: float,
    ) -> None:
        self._reactor = reactor
        self._command = [sys.executable, "-c", _RUN, "-n", "--pidfile=", "httpnas", *arguments]
        self._drain = drain
        self._endpoints = [(text, endpoint(reactor, text)) for text in listen]
        self._workers = [_Worker(self, each) for each in range(number)]
        self._stopping = False
        self.ports: list[IListeningPort] = []
        self.takes_lines: Callable[[str], object] | None = None
        self.started: Deferred[None] = Deferred()

    def listen(self, refuse: Callable[[str, Failure], Exception]) -> None:
        """Open the sockets, and accept nothing.

        :param refuse: returns what to raise when that cannot be done.
        """
        for description, place in self._endpoints:
            failures: list[Failure] = []
            silent = Factory()
            silent.noisy = False
            place.listen(silent).addCallbacks(self.ports.append, failures.append)
            if failures:
                raise refuse(description, failures[0])
            self.ports[-1].stopReading()  # type: ignore[attr-defined]

    def startService(self) -> None:
        """Start the workers."""
        super().startService()  # type: ignore[no-untyped-call]
        for worker in self._workers:
            self._start(worker)

    def _start(self, worker: _Worker) -> None:
        if not self._stopping:
            worker.start(self._reactor, self._command, self.ports)

    def serves(self, worker: _Worker) -> None:
        """Note that *worker* serves."""
        if not self.started.called and all(each.peer for each in self._workers):
            self.started.callback(None)

    def worker_ended(self, worker: _Worker, reason: Failure) -> None:
        """Start another one, unless all are to end, or the first could not start."""
        if self._stopping:
            return
        if not self.started.called:
            self.started.errback(reason)
            return
        pause = worker.next_pause(self._reactor.seconds())
        self._log.error(
            "worker {number} has ended ({reason}); the next one starts in {pause} seconds",
            number=worker.number,
            reason=reason.getErrorMessage().strip(),
            pause=pause,
        )
        self._reactor.callLater(pause, self._start, worker)

    def ask_others(self, asking: _Worker, what: str, argument: Any) -> Deferred[list[Any]]:
        """Return what each worker but *asking* answers; None for one that does not in time."""
        asked = [
            worker.peer.ask(what, argument).addTimeout(
                PATIENCE, self._reactor, lambda result, timeout: None
            )
            for worker in self._workers
            if worker is not asking and worker.peer is not None
        ]
        return DeferredList(asked).addCallback(lambda answers: [answer for _, answer in answers])

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to all workers."""
        for worker in self._workers:
            worker.send(number)

    def stopService(self) -> Deferred[Any]:
        """Let all workers drain; what has not ended in time is killed."""
        super().stopService()  # type: ignore[no-untyped-call]
        self._stopping = True
        self.signal(signal.SIGTERM)
        late = self._reactor.callLater(self._drain + _LAST, self.signal, signal.SIGKILL)
        ended = [worker.ended for worker in self._workers if worker.ended is not None]
        return DeferredList(ended).addCallback(lambda _: late.cancel() if late.active() else None)
