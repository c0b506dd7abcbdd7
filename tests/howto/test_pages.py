"""The pages and the code are one: what a page shows is what the tests beside this one have run."""

from __future__ import annotations

import re

import pytest

from tests.howto.conftest import Page
from tests.support.harness import PROJECT

PAGES = {
    "send-mail": "mail",
    "resize-pictures": "pictures",
    "make-a-report": "reports",
    "import-data": "etl",
    "call-a-webhook": "webhooks",
    "report-errors": "sentry",
}
NOT_WHOLE = {"sealed"}
"""Of these the page shows a part: ``test_encrypt_payloads`` looks at it."""


@pytest.mark.parametrize(("name", "module"), PAGES.items())
def test_the_page_shows_the_module_word_for_word(name: str, module: str) -> None:
    page = Page(name)
    assert page.code == (PROJECT / "examples" / f"{module}.py").read_text("utf-8")
    assert page.node[1][-2:] == ["--handlers", f"examples.{module}"]
    assert page.task["type"] in page.code


def test_each_example_has_its_page() -> None:
    modules = {path.stem for path in (PROJECT / "examples").glob("*.py")} - {"__init__"}
    assert modules == set(PAGES.values()) | NOT_WHOLE


@pytest.mark.parametrize("name", PAGES)
def test_each_variable_that_the_code_reads_is_explained(name: str) -> None:
    page = Page(name)
    prose = page.text.replace(page.code, "")
    for variable in re.findall(r'environ(?:\.get\(|\[)"(\w+)"', page.code):
        assert f"`{variable}`" in prose, variable


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    page = Page(name)
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.text.replace(page.code, "")):
        assert (page.path.parent / target).exists(), target
