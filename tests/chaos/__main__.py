"""``python -m tests.chaos``: see ``--help``; the work is done in ``tests.chaos.command``."""

import sys

from tests.chaos.command import main

sys.exit(main())
