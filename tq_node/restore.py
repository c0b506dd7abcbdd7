"""``python -m tq_node.restore``: the command of ``node.restore``."""

import sys

from twisted.internet.task import react

from tq_node.node.restore import main

if __name__ == "__main__":
    react(main, sys.argv[1:])
