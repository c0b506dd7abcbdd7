"""``python -m tests.attacks [--tls] [NAME…]``: all attacks, or those whose name contains one of the words, each against fresh
nodes; with ``--tls`` all by HTTPS."""

from __future__ import annotations

import sys

from tests.attacks.harness import HEADING, all_attacks, measure, row


def main(words: list[str]) -> int:
    print(HEADING, flush=True)
    failed = 0
    by_tls = "--tls" in words
    words = [word for word in words if word != "--tls"]
    for attack in all_attacks():
        if words and not any(word in attack.name for word in words):
            continue
        try:
            found = measure(attack, by_tls=by_tls)
        except AssertionError as why:
            failed += 1
            print(f"{attack.name:58} FAILED: {why}", flush=True)
            continue
        faults = found.faults(timed=True)
        failed += bool(faults)
        print(row(found) + (f"  BEYOND: {'; '.join(faults)}" if faults else ""), flush=True)
    print(f"{failed} beyond the bounds" if failed else "all within the bounds", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
