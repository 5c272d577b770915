"""The playground in a real browser, against a real service: each task's answers are shown as the heads give them."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from raybert.serve.security import ApiKeys
from tests import browser
from tests.serving import both_fixture, every_head, local_fixture, url_fixture  # noqa: F401  fixtures

TEXT = "🚀 Ada met Byron in London"  # beyond UTF-16's first plane: offsets there are others than Python's


def test_the_page_is_one_file_with_a_policy(url: str) -> None:
    response = httpx.get(url)
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    policy = response.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    assert not re.findall(r"(?:src|href)=\"(?!data:,|docs\"|metrics\")[^\"]*\"", response.text)
    assert "innerHTML" not in response.text
    assert httpx.head(url).status_code == 405


def test_the_api_page_loads_nothing_from_elsewhere(url: str) -> None:
    page = httpx.get(f"{url}/docs").text
    assert "https://" not in page
    loaded = re.findall(r"(?:src|href)=\"([^\"]+)\"", page)
    assert len(loaded) == 3
    assert [httpx.get(f"{url}{path}").status_code for path in loaded] == [200] * 3


class Page:
    """The playground in a tab."""

    def __init__(self, tab: browser.Tab) -> None:
        self.tab = tab

    def until(self, script: str) -> Any:
        """What an expression gives once it is true."""
        deadline = time.monotonic() + 30
        while not (found := self.tab.value(script)):
            assert time.monotonic() < deadline, (script, self.tab.value("document.body.innerText"))
            time.sleep(0.05)
        return found

    def choose(self, head: str) -> None:
        self.tab.value(f"$('head').value = '{head}'; $('head').dispatchEvent(new Event('change'))")

    def ask(self, **values: str) -> str:
        """Fill the fields in, press the button, and read what the answer says."""
        for name, value in values.items():
            self.tab.value(f"$('field-{name}').value = {value!r}")
        self.tab.value("$('result').replaceChildren(); $('run').click()")
        self.until("$('result').textContent !== '' && !$('run').disabled")
        return str(self.tab.value("$('result').innerText"))

    def no_complaints(self) -> None:
        told = [*self.tab.of("Runtime.consoleAPICalled"), *self.tab.of("Runtime.exceptionThrown")]
        assert told + self.tab.of("Log.entryAdded") == []


in_browser = pytest.mark.skipif(
    browser.PROGRAM is None, reason="no chromium on this machine (apt-get install chromium)"
)


@pytest.fixture(scope="module", name="page")
def page_fixture(both: tuple[str, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser.browser(tmp_path_factory.mktemp("profile")) as tab:
        page = Page(tab)
        tab.open(both[0], width=1200)
        page.until("!$('run').disabled")
        yield page
        page.no_complaints()
        asked = {each["request"]["url"] for each in tab.of("Network.requestWillBeSent")}
        assert {url for url in asked if not url.startswith((both[0], "data:"))} == set()


@pytest.mark.slow
@in_browser
class TestInABrowser:
    """One page, asked for everything that is served."""

    def test_it_names_what_is_served(self, page: Page, local: dict[str, Any]) -> None:
        shown = page.tab.value("Array.from($('head').options).map((option) => option.textContent)")
        tasks = {name: head.task.name for name, head in local.items()}
        assert shown == [f"{name} · {task}" for name, task in tasks.items()]

    def test_similarity(self, page: Page, local: dict[str, Any]) -> None:
        page.choose("vec")
        first, second = "a text", "another one"
        vectors = local["vec"]([first, second])
        cosine = float(vectors[0] @ vectors[1])
        assert f"{cosine:.4f}" in page.ask(first=first, second=second)

    def test_class_bars(self, page: Page, local: dict[str, Any]) -> None:
        page.choose("topic")
        shown = page.ask(text=TEXT)
        for label, score in local["topic"]([TEXT])[0].scores.items():
            assert re.search(rf"{label}\s+{100 * score:.1f} %", shown), shown
        widths = page.tab.value("Array.from(document.querySelectorAll('.track span')).map((bar) => bar.style.width)")
        scores = list(local["topic"]([TEXT])[0].scores.values())
        assert [float(width[:-1]) / 100 for width in widths] == pytest.approx(scores, abs=1e-3)

    def test_entities_are_marked_where_they_are(self, page: Page, local: dict[str, Any]) -> None:
        page.choose("people")
        page.ask(text=TEXT)
        marks = page.tab.value(
            "Array.from(document.querySelectorAll('mark'), (m) => [m.firstChild.textContent, m.lastChild.textContent])"
        )
        expected = [[TEXT[each.start : each.end], each.label] for each in local["people"]([TEXT])[0]]
        assert expected
        assert marks == expected
        whole = page.tab.value("$('result').querySelector('.text').textContent")
        assert re.sub("|".join(label for _, label in expected), "", whole) == TEXT

    def test_an_answer_in_its_context(self, page: Page, url: str) -> None:
        page.choose("answers")
        page.ask(question="Who?", context=TEXT)
        asked = {"inputs": {"question": "Who?", "context": TEXT}, "parameters": {"top_k": 3}}
        best = httpx.post(f"{url}/models/answers", json=asked).json()[0]
        marked = page.tab.value("$('result').querySelector('mark').firstChild.textContent")
        assert marked == TEXT[best["start"] : best["end"]] == best["answer"]

    def test_filled_masks(self, page: Page, local: dict[str, Any]) -> None:
        page.choose("words")
        assert "[MASK]" in page.tab.value("$('field-text').value")
        text = "a [MASK] and a [MASK]"
        shown = page.ask(text=text)
        for mask in local["words"]([text])[0]:
            for fill in mask:
                assert re.search(rf"{re.escape(fill.token)}\s+{100 * fill.score:.1f} %", shown), shown

    def test_ranks(self, page: Page, local: dict[str, Any]) -> None:
        page.choose("rank")
        texts = ["the first", "the second one", "a third"]
        page.ask(query="which?", texts="\n".join(texts))
        shown = page.tab.value("Array.from(document.querySelectorAll('#result th')).map((cell) => cell.textContent)")
        assert shown == [texts[each.index] for each in local["rank"]("which?", texts)]

    @pytest.mark.parametrize("head", ["sparse", "next", "choice"])
    def test_the_others_answer_too(self, page: Page, head: str) -> None:
        page.choose(head)
        page.tab.value("$('result').replaceChildren(); $('run').click()")
        page.until("document.querySelectorAll('#result td.number').length > 0")

    def test_a_text_is_never_markup(self, page: Page) -> None:
        page.choose("people")
        hostile = "Ada <img src=x onerror=alert(1)> & <b>Byron</b>"
        assert "<b>" in page.ask(text=hostile)
        assert page.tab.value("document.querySelectorAll('#result img, #result b').length") == 0

    def test_cost_and_the_same_with_curl(self, page: Page, url: str) -> None:
        page.choose("topic")
        page.ask(text="it's a text")
        cost = page.tab.value("$('cost').innerText")
        assert re.search(r"seen here\s+[\d.]+ ms", cost)
        assert re.search(r"tokens\s+\d+", cost)
        command = page.tab.value("$('curl').textContent")
        assert command.startswith(f"curl {url}/models/topic -H")
        assert "it'\\''s a text" in command

    def test_an_error_is_told(self, page: Page) -> None:
        page.choose("rank")
        page.no_complaints()
        shown = page.ask(query="which?", texts="")
        assert "texts" in shown
        assert page.tab.value("document.querySelector('#result [role=alert]') !== null")
        (told,) = page.tab.of("Log.entryAdded")  # a browser logs each 4xx by itself
        assert told["entry"]["source"] == "network"
        page.tab.events.remove({"method": "Log.entryAdded", "params": told})

    def test_every_field_has_a_name_and_the_keyboard_runs_it(self, page: Page) -> None:
        page.choose("vec")
        nameless = "Array.from(document.querySelectorAll('select, textarea')).filter((field) => !field.labels.length)"
        assert page.tab.value(f"{nameless}.length") == 0
        page.tab.value("$('field-first').focus(); $('result').replaceChildren()")
        for kind in ("rawKeyDown", "keyUp"):
            page.tab.call("Input.dispatchKeyEvent", type=kind, modifiers=2, key="Enter", windowsVirtualKeyCode=13)
        page.until("document.querySelector('#result .large') !== null")

    def test_narrow_and_dark(self, page: Page, url: str) -> None:
        for width, dark in ((400, False), (1200, True)):
            page.tab.open(url, width=width, dark=dark)
            page.until("!$('run').disabled")
            assert page.tab.value("document.documentElement.scrollWidth") <= width
            ground = page.tab.value("getComputedStyle(document.body).backgroundColor")
            assert (max(map(int, re.findall(r"\d+", ground))) < 60) is dark


@pytest.mark.slow
@in_browser
def test_a_key_is_asked_for(tmp_path: Path) -> None:
    key = "k" * 20
    with every_head(tmp_path, keys=ApiKeys([key])) as (url, _), browser.browser(tmp_path / "profile") as tab:
        page = Page(tab)
        tab.open(url, width=1200)
        page.until("!$('key-field').hidden")
        assert tab.value("$('run').disabled")
        tab.value("$('key').value = 'wrong'; $('unlock').click()")
        page.until("document.querySelector('#result [role=alert]')?.textContent.includes('API key')")
        tab.value(f"$('key').value = '{key}'; $('unlock').click()")
        page.until("!$('run').disabled && $('key-field').hidden")
        page.choose("topic")
        assert "%" in page.ask(text="a text")
        assert key not in tab.value("document.body.innerText")
        assert "$RAYBERT_API_KEY" in tab.value("$('curl').textContent")
