"""The terminal console. Its place is kept; nothing is here yet, and no ``tq-tui`` command is installed until it works."""
