"""Running tasks: handlers, the worker processes they run in, and the service that claims, runs and
finishes.

How it is driven: ``worker.WorkerService`` claims as many tasks as there are free slots and makes an
``Attempt`` of each. A ``def`` handler runs alone in a process of the ``pool`` (``process_attempt``,
``process``, and ``child`` inside the process); an ``async def`` among others on the event loop of a
process of the ``loop_pool`` (``loop_attempt``, ``loop_process``, ``loop_child``), or, where it says
``run="reactor"``, in the node (``reactor_attempt``). What a handler says goes through a
``ProgressBuffer``; its end is passed on by ``completer`` until the queue is known to have kept it.

What always holds: an attempt ends exactly once. Its handler does not outlive its lease: a worker
process is killed by a timer of its own, whatever the node does.

What it never does: it decides nothing about tasks (retries, states): that is the queue's. This file
imports nothing, since worker processes import single modules of the package and must not pull in
Twisted by it."""
