"""The page in a headless browser: by the keyboard alone, on a phone, and without the network."""

import numpy as np
import pytest

from ihvp.influence import TopK
from tests.ihvp.report import browser as browsers

WIDE = "w" * 80  # a word that is wider than a phone
TEXTS = ["a cat", "a dog <b>x</b>", f"no {WIDE}", "a bird", "two cats"]
LABELS = ["10", "9", f"label{WIDE}", "10", "9"]
# Where the page is at work: each visible example of each list, in order.
VISIBLE = """
[...document.querySelectorAll('section:not([hidden]) table')].map(
  table => [...table.querySelectorAll('tbody:not([hidden])')].map(each => Number(each.dataset.example)))
"""
SORTED = "[...document.querySelectorAll('th[aria-sort]')].map(th => th.textContent + ' ' + th.ariaSort)"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    path = browsers.find()
    if path is None:
        pytest.skip(f"there is no browser: none of {', '.join(browsers.NAMES)}")
    found = browsers.Browser(path, tmp_path_factory.mktemp("browser"))
    yield found
    found.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The same ranking of two queries, with inputs of each kind."""
    folder = tmp_path_factory.mktemp("pages")
    indices, scores = np.array([[0, 1, 2, 3, 4]] * 2), np.array([[0.3, 0.2, 0.1, -0.1, -0.2]] * 2)
    top = TopK(indices, scores, "both", 1e-8)
    images = np.random.default_rng(0).random((5, 32, 200))
    tokens = [text.split() for text in TEXTS]
    options = {
        "image": {"inputs": images, "queries": images[:2]},
        "text": {"inputs": TEXTS, "queries": TEXTS[:2]},
        "tokens": {"inputs": tokens, "token_scores": [np.arange(1.0, len(each) + 1) for each in tokens]},
        "table": {"inputs": {"x": range(5), WIDE: TEXTS, "z": [WIDE] * 5}},
    }
    for name, option in options.items():
        top.to_html(folder / f"{name}.html", labels=LABELS, query_labels=["10", WIDE], title=WIDE, **option)
    return {name: folder / f"{name}.html" for name in options}


def focused(browser):
    return browser.run("document.activeElement.id || document.activeElement.textContent")


def tab_to(browser, wanted):
    for _ in range(40):
        browser.press("Tab")
        if focused(browser) == wanted:
            return
    raise AssertionError(f"the key Tab does not reach {wanted!r}")


def test_the_keyboard_sorts(browser, pages):
    browser.open(pages["text"])
    assert browser.run(VISIBLE) == [[0, 1, 2], [4, 3]] * 2
    assert browser.run(SORTED) == ["Score descending", "Score ascending"] * 2
    tab_to(browser, "Label")
    browser.press("Enter")
    assert browser.run(VISIBLE)[:2] == [[1, 0, 2], [4, 3]]  # 9 comes before 10
    assert browser.run(SORTED)[0] == "Label ascending"
    assert focused(browser) == "Label"
    browser.press(" ")
    assert browser.run(VISIBLE)[0] == [2, 0, 1]
    tab_to(browser, "Example")  # of the list of those that harmed
    browser.press("Enter")
    assert browser.run(VISIBLE)[:2] == [[2, 0, 1], [3, 4]]
    assert browser.messages == []


def test_the_keyboard_filters_by_label_and_by_words(browser, pages):
    browser.open(pages["text"])
    tab_to(browser, "find")
    browser.press(*"CAT")
    assert browser.run(VISIBLE) == [[0], [4]] * 2
    assert browser.run("count.textContent") == "4 of 10 shown"
    browser.press("Backspace", *"b>")
    assert browser.run(VISIBLE) == [[], []] * 2
    assert browser.run("document.querySelector('.none').hidden") is False
    browser.open(pages["text"])
    tab_to(browser, "label")
    browser.press(*"10")  # a select takes what is typed
    assert browser.run("label.value") == "=10"
    assert browser.run(VISIBLE) == [[0], [3]] * 2
    browser.press("Tab")
    assert focused(browser) == "query-label"
    browser.press(*"10")
    assert browser.run(VISIBLE) == [[0], [3]]
    assert browser.run("count.textContent") == "2 of 10 shown"


def test_the_keyboard_walks_along_tokens_and_shows_their_numbers(browser, pages):
    browser.open(pages["tokens"])
    browser.run("document.querySelector('tbody .tokens').focus()")
    size = "document.activeElement.querySelector('.number').getBoundingClientRect().width"
    browser.press("ArrowRight", "ArrowRight")
    assert focused(browser) == "cat +2.00"
    assert browser.run(size) > 20
    browser.press("ArrowLeft")
    assert focused(browser) == "a +1.00"
    assert browser.run("document.querySelectorAll('.number')[1].getBoundingClientRect().width") <= 1
    # Words are found where numbers stand between them.
    browser.open(pages["tokens"])
    tab_to(browser, "find")
    browser.press(*"a cat")
    assert browser.run(VISIBLE) == [[0], []] * 2


def test_the_first_stop_of_the_keyboard_skips_to_the_queries(browser, pages):
    browser.open(pages["image"])
    browser.press("Tab")
    assert focused(browser) == "Skip to the queries"
    assert browser.run("document.activeElement.getBoundingClientRect().left") >= 0
    outline = browser.run("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    browser.press("Enter")
    assert focused(browser) == "queries"


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("kind", ["image", "text", "tokens", "table"])
def test_a_phone_needs_no_scrolling_to_the_side(browser, pages, kind, dark):
    browser.open(pages[kind], width=360, height=740, dark=dark)
    assert browser.run("[innerWidth, document.documentElement.scrollWidth]") == [360, 360]
    # Nor is anything cut off.
    parts = "[...document.querySelectorAll('td, th, img, dd, h1, .token')]"
    assert browser.run(f"Math.max(...{parts}.map(each => each.getBoundingClientRect().right))") <= 360
    ground = browser.run("getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).map(Number)")
    assert (max(ground) < 60) == dark


def test_nothing_is_asked_of_the_network_and_nothing_is_blocked(browser, pages):
    for path in pages.values():
        browser.open(path)
        assert {url for url in browser.requests if not url.startswith("data:")} == {path.as_uri()}
        assert browser.messages == []
    assert browser.run("[...document.images].every(each => each.naturalWidth)")


def test_a_script_in_the_data_does_not_run_even_if_it_were_markup(browser, pages, tmp_path):
    page = pages["text"].read_text()
    (tmp_path / "page.html").write_text(
        page.replace(
            "a cat", "<script>window.ran = 1</script><img src=http://127.0.0.1:9/x onerror='ran = 1'>"
        )
    )
    browser.open(tmp_path / "page.html")
    assert browser.run("'ran' in window") is False
    assert len(browser.messages) > 0  # of the policy, which refused
