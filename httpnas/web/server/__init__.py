"""What speaks HTTP/1.1 over a transport. Knows neither the storage nor the doors.

It is built on Twisted's transports, and not on ``twisted.web``. That collects the whole content of
a request before anybody sees it, and takes more than is safe here. Here a request is dispatched
when its *head* is complete. Its body is a push producer, which the handler connects to whatever
consumes it::

    admit from the head -> await body.deliver_to(consumer) -> commit -> answer

Four things follow from that:

- The body is asked for (``100 Continue``) when a handler wants it and not before. What arrives
  earlier is held up to a bound. At the bound, reading from the socket pauses.
- A handler may answer before the body has ended. The answer is written at once, but the request
  stays at the head of its connection until the rest of the body has been read and dropped. If that
  is too much, the connection *lingers*: it is closed for writing and read for a while, then ended,
  so that the client can read the answer (RFC 9112 section 9.6).
- A handler is never cancelled between two steps on disk. When the client vanishes, what waits for
  the network (a body, a download) fails, and the handler cleans up as after any other failure.
- Every connection is checked once a second. Its deadlines are not extended by a byte now and then.

Read the modules in this order; each imports only those before it:

=============== ===================================================================================
``application`` what the layers above give to a site: refusals, the log, the backend
``head``        the head of a request: parsed, or refused
``chunks``      where a body ends
``body``        the body of a request, as a push producer
``deadlines``   what takes too long, on one connection
``places``      what connections and requests cost, and who is turned away
``handlers``    the handlers that run, and waiting until none does
``request``     one request and its answer
``channel``     one connection
``site``        all connections, and shutting down
=============== ===================================================================================

For HTTP/2, a channel of its own would let :class:`.body.Body` pause the window of its stream, and
would dispatch at the first chunk of the body. Until that is built only HTTP/1.1 is offered.
"""
