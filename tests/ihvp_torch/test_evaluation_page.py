import json

from tests.evaluation import report


def test_page_marks_the_best_of_each_column_and_says_why_a_row_is_empty(tmp_path):
    numbers = {"loo": [0.5, 0.1], "brittleness": [0.2, 0.1], "auc": None, "damping": 0.01, "memory": 2**28}
    told = {
        "ihvp-influence--ek-fac": numbers | {"lds": [0.61, 0.02], "seconds": 0.5, "random": [0.04]},
        "ihvp-gradientdot": numbers | {"lds": [-0.3, 0.02], "seconds": 0.25, "damping": 0.0},
        "pydvl-ek-fac--tuned": {"failure": "takes Linear layers only"},
    }
    folder = tmp_path / "build" / "mlp"
    folder.mkdir(parents=True)
    for slug, about in told.items():
        (folder / f"{slug}.json").write_text(json.dumps(about))
    (folder / "bar.json").write_text(json.dumps({"EK-FAC": [[-0.012, 0.004], [0.001, 0.002]]}))
    report.write(tmp_path / "page.md", tmp_path / "build")
    page = (tmp_path / "page.md").read_text()
    assert "| **ihvp** Influence, EK-FAC | 0.01 | **0.610 ± 0.020** | **0.500 ± 0.100** |" in page
    assert "| **ihvp** GradientDot | – | −0.300 ± 0.020 |" in page
    assert "| – | **0.25** | **256** |" in page
    assert "| pyDVL EK-FAC, tuned |  | takes Linear layers only |" in page
    assert "the loss rises by 0.040" in page
    assert "| EK-FAC | −0.012 ± 0.004 | +0.001 ± 0.002 |" in page
    assert "not measured" in page
    assert "Not measured yet: Breast cancer" in page
    assert "## Digits, softmax regression" not in page
