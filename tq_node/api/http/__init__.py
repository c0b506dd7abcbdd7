"""The HTTP server below the routes: ``twisted.web`` with bounds, admission control and a fast path.

``ApiSite`` makes an ``ApiChannel`` for each connection. The channel gives a plain request of a fast
route to ``FastRequest``, any other to ``twisted.web``'s ``ApiRequest``. Both have one
``RequestLifecycle``, and handlers see both as an ``Exchange``.

- ``ServerState`` has all counts and limits; what a request took of them it gives back exactly once.
- Who may not is refused by the head alone, before a byte of the body is held.
- Both ways in refuse and answer the same, to the byte.
- Every buffer is bounded: heads, bodies, pipelined requests, unsent answers, queued refusals.
- It closes in order: ``ApiSite.close`` lets requests in progress finish.

It never reads a body: handlers decode it."""
