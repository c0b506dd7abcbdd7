"""Says how the Python that runs it was built: 0 and how, where a profile guided its compiler (PGO),
else 1 and how.

``make`` asks each that it finds. Ends with 1 where one is too old for taskqueue, or lacks what an
environment needs.
"""

import sys

if sys.version_info < (3, 11):
    sys.exit(1)

import ensurepip  # noqa: F401 -- a package of its own with Debian; it makes environments
import platform
import sqlite3  # noqa: F401 -- left out of a build where its headers were missing, as ssl is
import ssl  # noqa: F401
import sysconfig

options = sysconfig.get_config_var("CONFIG_ARGS") or ""
made_with = [name for option, name in (("--enable-optimizations", "PGO"), ("--with-lto", "LTO")) if option in options]
if sys.base_prefix == "/usr" and not made_with:
    made_with = ["what its distribution takes"]  # PGO and LTO with Debian, which does not say so
is_guided = bool(made_with) and made_with != ["LTO"]
print(0 if is_guided else 1, f"{platform.python_version()}, with {' and '.join(made_with) or 'neither PGO nor LTO'}")
