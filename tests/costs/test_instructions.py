"""Instructions a submit, a commit, a row and a request: no dearer than the baseline beside the bench says.

``python -m bench.instructions --compare`` shows all parts. Who makes one dearer on purpose writes a new baseline (``--json``) and
says so.
"""

from __future__ import annotations

import pytest

from bench.instructions import measuring
from bench.instructions.__main__ import BASELINE, main

GROWTH_MAX = 1.03
"""Two in a hundred, and one that runs on another day or below another path differ by."""
TLS_GROWTH_MAX = 1.8
OTHER_BUILDS_GROWTH_MAX = 1.5
"""Where the interpreter or a library is another one than the baseline's: only a slip by half shows."""

needs_callgrind = pytest.mark.skipif(
    measuring.missing() is not None, reason=f"{measuring.missing()}; calls are counted"
)


@needs_callgrind
@pytest.mark.slow
@pytest.mark.parametrize(
    "part",
    [
        "commit of 1 entry",
        "request, submit",
        *(
            pytest.param(part, marks=pytest.mark.long)
            for part in (
                "submit, 32 in flight",
                "row, 1,000 a commit",
                "request, submit by a socket",
                "request, submit by Klein",
            )
        ),
    ],
)
def test_instructions(part: str) -> None:
    before = measuring.load(BASELINE)
    bound = GROWTH_MAX if before.builds == measuring.builds() else OTHER_BUILDS_GROWTH_MAX
    found = measuring.measure(part)
    print(f"\n{part}: {found:,.0f} instructions, {before.figures[part]:,.0f} at {before.commit}")
    assert found < before.figures[part] * bound


@needs_callgrind
@pytest.mark.long
def test_two_runs_count_the_same() -> None:
    first, second = (measuring.measure("commit of 1 entry") for _ in range(2))
    assert first == pytest.approx(second, rel=0.01)


def test_the_baseline_is_a_table_of_all_parts() -> None:
    from bench.instructions.harness import PARTS

    assert measuring.load(BASELINE).figures.keys() == PARTS.keys()


@pytest.mark.parametrize("content", [b"", b"{}", b'{"commit":1}'])
def test_what_is_no_table_is_refused_in_one_line(
    content: bytes, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path_factory.mktemp("table") / "table.json"
    file.write_bytes(content)
    if measuring.missing() is not None:
        pytest.skip(measuring.missing() or "")
    assert main(["--compare", str(file)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@needs_callgrind
@pytest.mark.long
def test_a_submit_by_tls() -> None:
    """Of the HTTP side alone; a whole submit is several times that."""
    plain, by_tls = (measuring.measure(part) for part in ("request, submit", "request, submit, by TLS"))
    print(f"\n{plain:,.0f} instructions, {by_tls:,.0f} by TLS")
    assert by_tls < plain * TLS_GROWTH_MAX
