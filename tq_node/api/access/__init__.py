"""Who may call what: pure, asked by both ways in. ``access``: what a route asks of a caller."""
