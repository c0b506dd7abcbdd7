"""Connections between nodes: bounded AMP, an authenticated handshake, and two lanes to each other
member.

How it is driven: ``listener.PeerListener`` accepts connections and passes calls to a
``handler.PeerHandler``; ``pool.PeerPool`` keeps both lanes to every member open (``lane``,
``connector``) and sends. ``commands`` and ``codec`` are what goes over them, ``errors`` what a call
may fail with. Everything runs in the reactor thread.

What always holds: nothing is served before the peer has proven that it knows the cluster's secret
or has shown a certificate (``handshake``). Bytes, boxes, calls and connections are bounded
(``bounds``). Every call ends: with an answer, an error, or ``OutcomeUnknown`` by its deadline.

What it never does: it queues nothing for later, repeats nothing, and knows neither partitions nor
Raft, but for their messages' form."""
