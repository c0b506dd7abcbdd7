"""PURE. Consensus for the metadata log (Raft); payloads are opaque bytes to it. See
docs/explanation/raft.md."""
