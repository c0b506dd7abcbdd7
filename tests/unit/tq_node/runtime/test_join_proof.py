"""A joiner proves the secret over HTTP: what is believed, and for how long."""

from __future__ import annotations

import os

import pytest

from tq_node.facade import CHALLENGE_BYTES
from tq_node.runtime.join_proof import VALID_S, Challenges, is_proven, proof

SECRETS = (b"the secret that is shown", b"the one that it replaces")


class Time:
    now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


def test_a_proof_by_either_secret_counts() -> None:
    challenge = Challenges(os.urandom, Time()).make()
    assert all(is_proven(SECRETS, challenge, proof(secret, challenge)) for secret in SECRETS)
    assert not is_proven(SECRETS, challenge, proof(b"guessed guessed guessed", challenge))
    assert not is_proven(SECRETS, challenge, b"")
    assert not is_proven((), challenge, proof(b"", challenge))


def test_a_proof_fits_one_challenge() -> None:
    challenges = Challenges(os.urandom, Time())
    first, second = challenges.make(), challenges.make()
    assert first != second
    assert not is_proven(SECRETS, second, proof(SECRETS[0], first))


def test_a_challenge_counts_for_a_while_at_the_run_that_made_it() -> None:
    time = Time()
    challenges = Challenges(os.urandom, time)
    challenge = challenges.make()
    time.now_s += VALID_S
    assert challenges.is_valid(challenge)
    assert not Challenges(os.urandom, time).is_valid(challenge), "the next run's key is another"
    time.now_s += 1
    assert not challenges.is_valid(challenge)


@pytest.mark.parametrize("place", range(CHALLENGE_BYTES))
def test_nobody_makes_or_prolongs_a_challenge(place: int) -> None:
    challenges = Challenges(os.urandom, Time())
    changed = bytearray(challenges.make())
    changed[place] ^= 1
    assert not challenges.is_valid(bytes(changed))
    assert not challenges.is_valid(bytes(changed[:place]))
    assert not challenges.is_valid(bytes(changed) + b"\0")
