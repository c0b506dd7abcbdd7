"""Who may call what: pure, asked by both ways in before a body is read.

``access``: what a route asks of a caller; ``authenticator``: who the caller of a request is;
``scope``: which tasks and queues it may know of; ``redaction``: what it is shown of them."""
