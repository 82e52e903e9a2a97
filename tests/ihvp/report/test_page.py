"""The page as text: whole without anything else, and what users wrote is text in it."""

import base64
import hashlib
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from ihvp.errors import InvalidOption, NotImages
from ihvp.influence import TopK

# Words that would be markup, end an attribute, a script or a comment, or turn the page around.
NASTY = [
    "<script>alert(1)</script>",
    "<img src=http://evil.example onerror='alert(1)'>",
    "\"'><b onclick=x>",
    "</script><!--",
    "]]>&amp;&#60;",
    "right \u202e to \u2066 left \u200f\u200b\ufeff",
    "line \u2028 and \u2029",
    "$title ${style}",
    "two\nlines\tand <br>",
]
ODD = "nul \0, return \r, escape \x1b, half a pair \ud800"


class Page(HTMLParser):
    """The elements of a page in order, each as its name, its attributes and the text within."""

    def __init__(self, text):
        super().__init__()
        self.elements, self._open = [], []
        self.comments = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        element = (tag, dict(attributes), [])
        self.elements.append(element)
        if tag not in ("meta", "link", "img", "input"):
            self._open.append(element)

    def handle_endtag(self, tag):
        while self._open.pop()[0] != tag:
            pass

    def handle_data(self, data):
        for _, _, texts in self._open:
            texts.append(data)

    def handle_comment(self, data):
        self.comments.append(data)

    def all(self, tag, **wanted):
        return [
            (attributes, "".join(texts))
            for name, attributes, texts in self.elements
            if name == tag and all(attributes.get(key) == value for key, value in wanted.items())
        ]


def ranking(tests=1, k=9, which="both"):
    scores = np.linspace(0.55, -0.25, k)
    if which != "both":
        scores = np.abs(scores) * (1 if which == "helpful" else -1)
    return TopK(np.tile(np.arange(k), (tests, 1)), np.tile(scores, (tests, 1)), which, 2e-8)


def lists(text):
    """Of each query and each of its lists, the numbers of the examples in order."""
    sections = re.split("<section ", text)[1:]
    return [
        {
            name: [int(i) for i in re.findall(r'data-example="(\d+)"', part)]
            for name, part in re.findall(r'<table class="(\w+)">(.*?)</table>', section, re.DOTALL)
        }
        for section in sections
    ]


NESTED = {
    "text": NASTY,
    "tokens": [[word, "plain"] for word in NASTY],
    "columns": {"<i>name</i>": NASTY},
    "frame": pd.DataFrame({"<i>name</i>": NASTY, "number": range(9)}),
}


@pytest.mark.parametrize("form", NESTED)
def test_what_users_wrote_stays_text(form):
    inputs = NESTED[form]
    queries = inputs[:1] if isinstance(inputs, list) else None
    text = ranking().to_html(
        inputs=inputs, queries=queries, labels=NASTY, query_labels=NASTY[:1], title="<h1>'\"</h1>"
    )
    page = Page(text)
    tags = {name for name, _, _ in page.elements}
    assert not tags & {"b", "i", "br"}
    assert not page.comments
    assert len(page.all("script")) == len(page.all("h1")) == len(page.all("style")) == 1
    handlers = [key for _, attributes, _ in page.elements for key in attributes if key.startswith("on")]
    assert handlers == []
    assert page.all("h1")[0][1] == page.all("title")[0][1] == "<h1>'\"</h1>"
    order = [*NASTY[:6], *reversed(NASTY[6:])]  # six helped, and the last harmed most
    assert [text for _, text in page.all("bdi")] == [NASTY[0], *order]
    assert [attributes["data-label"] for attributes, _ in page.all("tbody")] == order
    kinds = {"text": ("div", {"class": "text whole"}), "tokens": ("div", {"class": "text tokens"})}
    tag, wanted = kinds.get(form, ("dd", {}))
    cells = [text.removesuffix("\nplain") for _, text in page.all(tag, **wanted) if not text.isdigit()]
    assert cells == [*([] if queries is None else NASTY[:1]), *order]
    assert {text for _, text in page.all("dt")} <= {"<i>name</i>", "number"}


def test_odd_characters_are_shown_as_pictures_and_the_file_is_utf_8(tmp_path):
    text = ranking(k=1).to_html(tmp_path / "page.html", inputs=[ODD], labels=[ODD])
    assert (tmp_path / "page.html").read_bytes().decode() == text
    assert "nul ␀, return ␍, escape ␛, half a pair ?" in text
    assert not re.search("[\0\r\x1b]", text)


def test_nothing_is_loaded_from_elsewhere():
    text = ranking(2).to_html(inputs=np.zeros((9, 4, 4)), queries=np.zeros((2, 4, 4)), labels=range(9))
    page = Page(text)
    places = [
        attributes[key]
        for _, attributes, _ in page.elements
        for key in ("src", "href", "action", "srcset", "data", "poster", "xlink:href")
        if key in attributes
    ]
    assert places
    assert all(re.match(r"data:|#", place) for place in places)
    (policy,) = page.all("meta", **{"http-equiv": "Content-Security-Policy"})
    rules = dict(rule.strip().split(" ", 1) for rule in policy[0]["content"].split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    for tag in ("style", "script"):
        ((_, inner),) = page.all(tag)
        digest = base64.b64encode(hashlib.sha256(inner.encode()).digest()).decode()
        assert rules[f"{tag}-src"] == f"'sha256-{digest}'"
        assert not re.search(r"https?:|url\(|@import|fetch|XMLHttp|innerHTML", inner)
    assert not [attributes for _, attributes, _ in page.elements if "style" in attributes]


def test_positive_scores_helped_and_negative_ones_harmed_the_most_first():
    top = TopK(np.array([[7, 2, 5, 0, 1]]), np.array([[-0.9, 0.5, 0.1, 0.0, -0.2]]), "both", 0.0)
    assert lists(top.to_html(inputs=["a"] * 8)) == [{"helped": [2, 5], "harmed": [7, 1]}]


def test_a_ranking_of_one_kind_lists_that_kind_alone():
    # Few helped: the last of the helpful are not the most harmful.
    top = TopK(np.array([[3, 1, 2]]), np.array([[0.4, -0.1, -0.2]]), "helpful", 0.0)
    assert lists(top.to_html(inputs=["a"] * 4)) == [{"helped": [3]}]
    harmful = TopK(np.array([[0, 2, 1]]), np.array([[-0.5, -0.2, -0.1]]), "harmful", 3e-4)
    text = top.to_html(inputs=["a"] * 4, other=harmful)
    assert lists(text) == [{"helped": [3], "harmed": [0, 2, 1]}]
    assert "3.0e-04" in text  # the larger residual
    assert text == harmful.to_html(inputs=["a"] * 4, other=top)


def test_each_example_has_its_rank_score_number_label_and_input():
    top = TopK(np.array([[4, 1]]), np.array([[0.25, 0.001234]]), "helpful", 0.0)
    page = Page(top.to_html(inputs=list("abcde"), labels=np.array([7, 8, 9, 10, 11])))
    rows = [text for _, text in page.all("tbody")]
    cells = [
        text for attributes, text in page.all("td") if attributes.get("class") in ("rank", "score", "label")
    ]
    assert cells == ["1", "+0.250", "11", "2", "+0.00123", "8"]
    assert [text for _, text in page.all("th", scope="row")] == ["4", "1"]
    assert [row[-1] for row in rows] == ["e", "b"]


def test_only_examples_that_appear_are_in_the_page():
    top = TopK(np.array([[1]]), np.array([[0.5]]), "helpful", 0.0)
    text = top.to_html(inputs=["hidden one", "seen", "hidden two"])
    assert "seen" in text
    assert "hidden one" not in text
    assert "hidden two" not in text


def test_tokens_are_shaded_by_their_share_of_the_largest_of_the_query():
    top = TopK(np.array([[0, 1]]), np.array([[0.5, -0.5]]), "both", 0.0)
    tokens = [["one", "two"], ["three"]]
    page = Page(top.to_html(inputs=tokens, token_scores=[[0.5, -1.0], [0.0]]))
    shown = {text: attributes["class"] for attributes, text in page.all("span", tabindex="-1")}
    assert shown == {
        "one +0.500": "token plus shade4",
        "two −1.00": "token minus shade8",
        "three +0.00": "token",
    }


def test_token_scores_may_depend_on_the_query():
    top = TopK(np.array([[0], [0]]), np.array([[0.5], [0.5]]), "both", 0.0)
    text = top.to_html(inputs=[["one"]], token_scores=lambda test, train: [test - 0.5])
    assert [text for _, text in Page(text).all("span", tabindex="-1")] == ["one −0.500", "one +0.500"]


TABLES = {
    "frame": pd.DataFrame({"age": [31, 42], "height": [1.5, 1.76543219]}, index=[9, 3]),
    "columns": {"age": pd.Series([31, 42], index=[5, 6]), "height": np.array([1.5, 1.76543219])},
    "matrix": np.array([[31, 1.5], [42, 1.76543219]]),
}


@pytest.mark.parametrize("form", TABLES)
def test_rows_of_a_table_have_the_names_of_their_columns(form):
    top = TopK(np.array([[1]]), np.array([[0.5]]), "helpful", 0.0)
    names = ["age", "height"] if form == "matrix" else None
    page = Page(top.to_html(inputs=TABLES[form], feature_names=names))
    assert [text for _, text in page.all("dt")] == ["age", "height"]
    assert [text for _, text in page.all("dd")] == ["42", "1.76543"]


def test_what_a_screen_reader_says():
    page = Page(
        ranking(2).to_html(inputs=np.zeros((9, 4, 4)), queries=np.zeros((2, 4, 4)), labels="abcdefghi")
    )
    assert page.all("html")[0][0]["lang"] == "en"
    assert page.all("a", **{"class": "skip"})[0][0]["href"] == "#queries"
    assert len(page.all("main", id="queries")) == len(page.all("nav")) == 1
    assert {attributes["alt"] for attributes, _ in page.all("img")} >= {
        "Input of query 0",
        "Training example 3, label d",
    }
    orders = [each.get("aria-sort") for each, _ in page.all("th", **{"data-key": "score"})]
    assert orders == ["descending", "ascending"] * 2
    assert (
        "predicted rise of the query's loss when the training example is removed" in page.all("header")[0][1]
    )
    assert "2.0e-08" in page.all("header")[0][1]


BAD = {
    "too few inputs": ({"inputs": ["a"] * 8}, "a score belongs to example 8, and there are 8 inputs"),
    "too few labels": ({"labels": [0] * 8}, "expected 9 of them, and there are 8"),
    "queries": ({"queries": ["a", "b"]}, "expected 1 of them, and there are 2"),
    "query labels": ({"query_labels": []}, "expected 1 of them, and there are 0"),
    "no inputs": ({"inputs": 3}, "inputs is 3"),
    "of five dimensions": ({"inputs": np.zeros((9, 2, 2, 2, 2))}, "expected images"),
    "numbers": ({"inputs": list(range(9))}, "expected images"),
    "ragged": ({"inputs": [[1.0]] * 8 + [[1.0, 2.0]]}, "expected images"),
    "half texts": ({"inputs": ["a"] * 8 + [3.0], "kind": "text"}, r"inputs\[8\] is 3.0; expected a text"),
    "a number among the queries": ({"queries": [1]}, r"queries\[0\] is 1; expected a text"),
    "kind": ({"kind": "sound"}, "kind is 'sound'"),
    "infinite pixels": ({"inputs": np.full((9, 2, 2), np.inf)}, r"inputs\[0\] .* finite real numbers"),
    "complex pixels": ({"inputs": np.zeros((9, 2, 2), complex)}, "finite real numbers"),
    "columns": ({"inputs": {"a": [1] * 9, "b": [1] * 8}}, "columns of equal length"),
    "other columns": ({"inputs": {"a": [1] * 9}, "queries": {"b": [1]}}, "the columns of the inputs: a"),
    "names": ({"inputs": np.zeros((9, 2)), "feature_names": ["a"]}, "a name for each feature"),
    "names of texts": ({"feature_names": ["a"]}, "feature_names is"),
    "scores of images": ({"inputs": np.zeros((9, 2, 2)), "token_scores": []}, "token_scores is"),
    "scores of whole texts": ({"token_scores": [[1.0]] * 9}, "inputs of lists of tokens"),
    "too few scores": ({"inputs": [["a", "b"]] * 9, "token_scores": [[1.0]] * 9}, "2 finite numbers"),
    "scores of too few": (
        {"inputs": [["a"]] * 9, "token_scores": [[1.0]] * 8},
        "one list for each of 9 texts",
    ),
    "infinite scores": ({"inputs": [["a"]] * 9, "token_scores": [[np.nan]] * 9}, "1 finite numbers"),
    "another ranking": ({"other": ranking(2)}, "a ranking of the same 1 test points"),
    "no ranking": ({"other": 3}, "other is 3; expected a TopK"),
    "no folder": ({"path": "no_folder/page.html"}, "a folder that is there"),
    "no path": ({"path": 3}, "path is 3"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case):
    options, text = BAD[case]
    with pytest.raises(InvalidOption, match=text):
        ranking().to_html(**({"inputs": ["a"] * 9} | options))


@pytest.mark.parametrize("shape", [(9, 5, 4, 5), (9, 2, 4, 2), (9, 16)])
def test_images_of_other_shapes_are_named(shape):
    with pytest.raises(NotImages):
        ranking().to_html(inputs=np.zeros(shape), kind="image")
