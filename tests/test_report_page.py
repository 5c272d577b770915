"""The report's page: it shows what report.json holds and nothing else, loads nothing, and obeys no text of a row."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from raybert.data.report import report
from tests import browser
from tests.report_run import HOSTILE, made

VOID = {"meta", "br", "img", "link", "input", "hr"}
UNITS = {"%": 0.01, "s": 1, "min": 60, "h": 3600} | {
    unit: 1024**power for power, unit in enumerate(("B", "KiB", "MiB", "GiB", "TiB", "PiB"))
}
NUMBER = r"[+-]?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?"


class Page(HTMLParser):
    """What a page shows: marked figures with their text, and texts outside of them."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.figures: list[tuple[str, str]] = []
        self.titles: list[tuple[list[str], str]] = []
        self.loose: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self._open: list[dict[str, Any]] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.tags.append((tag, found))
        if tag not in VOID:
            self._open.append({"tag": tag, "attributes": found, "text": ""})

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        element = self._open.pop()
        assert element["tag"] == tag, (element, tag)
        attributes = element["attributes"]
        if "data-figure" in attributes:
            self.figures.append((attributes["data-figure"], element["text"]))
        if "data-figures" in attributes:
            self.titles.append((attributes["data-figures"].split(), element["text"]))

    def handle_data(self, data: str) -> None:
        marked = False
        for element in self._open:
            element["text"] += data
            marked = marked or bool({"data-figure", "data-figures"} & element["attributes"].keys())
        tags = {element["tag"] for element in self._open}
        if not marked and not tags & {"style", "text"}:  # a drawing's <text> is its scale
            self.loose.append(data)


@pytest.fixture(name="top", scope="module")
def top_fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = made(tmp_path_factory.getbasetemp())
    for name in ("texts", "pairs"):
        report(top / name)
    return top


@pytest.fixture(name="folder", scope="module", params=["texts", "pairs"])
def folder_fixture(top: Path, request: pytest.FixtureRequest) -> Path:
    return Path(top / request.param / "_raybert")


@pytest.fixture(name="text", scope="module")
def text_fixture(folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(name="page", scope="module")
def page_fixture(text: str) -> Page:
    return Page(text)


@pytest.fixture(name="facts", scope="module")
def facts_fixture(folder: Path) -> Any:
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))


def at(facts: Any, path: str) -> Any:
    for key in path.split("."):
        facts = facts[int(key)] if isinstance(facts, list) else facts[key]
    return facts


def visible(text: str) -> str:
    """A text with the characters that a browser would drop or obey spelled out."""
    obeyed = [*range(9), *range(0x0B, 0x20), *range(0x7F, 0xA0), 0x61C, 0x200E, 0x200F]
    obeyed += [*range(0x202A, 0x202F), *range(0x2066, 0x206A)]
    return text.translate({code: f"⟨{code:04X}⟩" for code in obeyed})


def assert_shown(shown: str, value: Any) -> None:
    """The text says what the value is, to as many digits as it has."""
    if value is None:
        assert shown == "\u2013"
    elif isinstance(value, str):
        assert shown == visible(value)
    elif isinstance(value, bool | list | dict):
        assert json.loads(shown) == value
    else:
        match = re.fullmatch(rf"({NUMBER})(?: (\S+))?", shown)
        assert match, shown
        digits, unit = match[1].replace(",", ""), match[2]
        decimals = len(digits.partition("e")[0].partition(".")[2])
        scale = UNITS[unit] if unit else 1
        slack = 0.5001 * 10**-decimals * scale if unit and unit != "B" else 5.1e-4 * abs(value)
        if isinstance(value, int) and not unit:
            slack = 5e-4 * abs(value) if "e" in digits else 0
        assert abs(float(digits) * scale - value) <= slack, (shown, value)


def test_every_figure_is_that_of_the_json(page: Page, facts: Any) -> None:
    assert len(page.figures) > 150
    for path, shown in page.figures:
        assert_shown(shown, at(facts, path))
    assert len(page.titles) > 20
    for paths, shown in page.titles:
        numbers = [each.rstrip(",") for each in re.findall(NUMBER, shown)]
        assert len(numbers) == len(paths), shown
        for path, number in zip(paths, numbers, strict=True):
            assert_shown(number, at(facts, path))


def test_no_number_stands_outside_of_a_figure(page: Page) -> None:
    assert [text for text in page.loose if re.search(r"\d", text)] == []


def test_main_figures_are_there(page: Page, facts: Any) -> None:
    shown = {path for path, _ in page.figures}
    assert {f"summary.{name}" for name in ("rows", "ok", "quarantined", "filtered", "tokens", "parts")} <= shown
    for number in range(len(facts["heads"])):
        assert {f"heads.{number}.{name}" for name in ("name", "task", "model", "fingerprint")} <= shown
    assert {"times.sessions.0.rows", "times.stages.2.busy", "packing.forwarded"} <= shown
    for number, each in enumerate(facts["quarantine"]["reasons"]):
        assert f"quarantine.reasons.{number}.count" in shown
        assert f"quarantine.reasons.{number}.examples.{len(each['examples']) - 1}.detail" in shown


def test_bars_are_as_high_as_their_counts(text: str, facts: Any) -> None:
    drawings: dict[str, list[tuple[float, float]]] = {}
    for paths, path in re.findall(r'<title data-figures="([^"]+)">[^<]*</title><path d="([^"]+)"', text):
        corners = [float(y) for y in re.findall(r"[ML] [\d.]+ ([\d.]+)", path)]
        counted = paths.split()[0]
        drawing = drawings.setdefault(counted.rpartition(".")[0], [])
        drawing.append((at(facts, counted), max(corners) - min(corners)))
    assert len(drawings) >= 4
    for path, bars in drawings.items():
        values, heights = map(list, zip(*bars, strict=True))
        assert values == at(facts, path)
        assert max(heights) > 50
        assert heights == pytest.approx([value * max(heights) / max(values) for value in values], abs=0.01)


def test_the_page_loads_and_runs_nothing(page: Page, text: str) -> None:
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "img", "link", "iframe", "object", "embed", "form", "base", "image", "foreignobject"}
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes), tag
        for name in ("href", "src", "srcset", "action"):
            assert attributes.get(name, "#").startswith("#"), (tag, attributes)
        assert "url(" not in attributes.get("style", ""), attributes
    (policy,) = [each["content"] for tag, each in page.tags if each.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:")
    assert "http://" not in text
    assert "https://" not in text
    assert len(text) < 1 << 20


def test_links_and_names_hold(page: Page) -> None:
    identities = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(identities) == len(set(identities))
    links = {each["href"][1:] for _, each in page.tags if each.get("href", "").startswith("#")}
    links |= {each["aria-labelledby"] for _, each in page.tags if "aria-labelledby" in each}
    clips = {match for _, each in page.tags for match in re.findall(r"url\(#([^)]+)\)", each.get("clip-path", ""))}
    assert links | clips <= set(identities)
    for tag, attributes in page.tags:
        if tag == "svg":
            assert attributes["role"] == "img"
            assert attributes["aria-label"]


def test_hostile_texts_are_shown_and_inert(top: Path) -> None:
    text = (top / "texts/_raybert/report.html").read_text(encoding="utf-8")
    facts = json.loads((top / "texts/_raybert/report.json").read_text(encoding="utf-8"))
    shown = {shown for _, shown in Page(text).figures}
    assert HOSTILE in texts_of(facts)
    assert visible(HOSTILE) in shown
    for code in (0x202E, 0x2066, 0, 7, 13):
        assert chr(code) not in text
    assert any("<b>sports</b>" in each or "'law' & \"order\"" in each for each in shown)
    assert "a<b>&\"'.jsonl" in shown


def texts_of(value: Any) -> set[str]:
    """All texts in a JSON value."""
    if isinstance(value, str):
        return {value}
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return set().union(*map(texts_of, inside))


@pytest.mark.slow
@pytest.mark.skipif(browser.PROGRAM is None, reason="no chromium on this machine (apt-get install chromium)")
def test_in_a_browser(folder: Path, facts: Any, tmp_path: Path) -> None:
    script = "Array.from(document.querySelectorAll('[data-figure]')).map(e => [e.dataset.figure, e.textContent])"
    with browser.browser(tmp_path / "profile") as tab:
        for width, dark in ((1400, False), (400, False), (1400, True)):
            tab.open(folder / "report.html", width=width, dark=dark)
            figures = tab.value(script)
            assert len(figures) > 150
            for path, shown in figures:
                assert_shown(shown, at(facts, path))
            assert tab.value("document.documentElement.scrollWidth") <= width, "the page is wider than its window"
            assert tab.value("document.querySelectorAll('script,img,iframe,object,embed,link').length") == 0
            ground = tab.value("getComputedStyle(document.body).backgroundColor")
            assert (max(map(int, re.findall(r"\d+", ground))) < 60) is dark
        assert tab.value(
            "Array.from(document.querySelectorAll('svg')).every(e => e.getBoundingClientRect().width > 200)"
        )
        asked = {each["request"]["url"] for each in tab.of("Network.requestWillBeSent")}
        assert asked == {(folder / "report.html").as_uri()}
        told = [*tab.of("Log.entryAdded"), *tab.of("Runtime.consoleAPICalled"), *tab.of("Runtime.exceptionThrown")]
        assert told == []
        assert tab.of("Page.javascriptDialogOpening") == []
