"""The only room that knows bytes between peers: hardened AMP, handshake, lanes to the other nodes."""
