"""The code of every page runs as it stands, in the order of the page, and prints what the page says.

- The blocks of a page share a namespace; each page runs in a process of its own, in an empty folder. Those of
  pages that need the same are forks of one, which has loaded the packages that they share.
- ``<!-- needs: torch -->`` above a block: it runs only together with others that need the same package, or
  none. Such a page runs once for each of them.
- A ``text`` block right after a block holds what that prints.
- A block that is included from a file by a snippet is tested where that file is.
- A block with ``exec=`` runs when the pages are built, which fails where it does. All of the tutorials' do.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import json
import os
import re
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [page.relative_to(DOCS).as_posix() for page in sorted(DOCS.rglob("*.md"))]

_BLOCK = re.compile(
    r"(?:^ *<!-- needs: (?P<needs>\w+) -->\n)?"
    r"^(?P<indent> *)```python(?P<options>[^\n]*)\n(?P<code>.*?)^(?P=indent)```\n"
    r"(?:\n(?P=indent)```text\n(?P<output>.*?)^(?P=indent)```\n)?",
    re.MULTILINE | re.DOTALL,
)
_SNIPPET = re.compile(r'--8<-- "([^"]+)"\s*')


@dataclass(frozen=True)
class Block:
    """One piece of code, on line ``line`` of its page; ``output`` is None where the page shows none."""

    line: int
    code: str
    needs: str | None
    output: str | None
    options: str


def blocks_of(page: str) -> list[Block]:
    text = (DOCS / page).read_text()
    return [
        Block(
            text.count("\n", 0, found.start("code")) + 1,
            textwrap.dedent(found["code"]),
            found["needs"],
            None if found["output"] is None else textwrap.dedent(found["output"]),
            found["options"],
        )
        for found in _BLOCK.finditer(text)
    ]


def runs_in_the_build(block: Block) -> bool:
    return 'exec="true"' in block.options


def runs_here(block: Block) -> bool:
    return not runs_in_the_build(block) and not _SNIPPET.fullmatch(block.code)


def runs() -> list[tuple[str, str]]:
    """Each page with each of the packages that its blocks need; ``""`` where they need none."""
    found = []
    for page in PAGES:
        blocks = [block for block in blocks_of(page) if runs_here(block)]
        needs = sorted({block.needs for block in blocks if block.needs})
        found += [(page, need) for need in (needs or [""] * bool(blocks))]
    return found


# By what pages need. Other frameworks start threads as they are imported, and these do not survive a fork.
LOADED = {"": ("ihvp",), "torch": ("ihvp", "torch", "sklearn.datasets")}


def can_run(page: str) -> bool:
    return page != "recipes.md" or importlib.util.find_spec("transformers") is not None


@pytest.fixture(scope="module")
def failures(request, tmp_path_factory):
    """What is said by those that fail of the selected pages with one need."""
    selected = [item.callspec.params for item in request.session.items if "failures" in item.fixturenames]

    @functools.cache
    def with_need(need: str) -> dict[str, str]:
        pages = [each["page"] for each in selected if each["need"] == need and can_run(each["page"])]
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "MPLBACKEND": "agg"}
        if need == "keras":
            environment["KERAS_BACKEND"] = "jax"  # as backends.md says
        if need == "jax":  # tiny models, which take longer to compile than to train
            environment["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
        command, folder = [sys.executable, __file__, need, *pages], tmp_path_factory.mktemp("pages")
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, cwd=folder, check=False
        )
        assert done.returncode == 0, done.stderr
        failed: dict[str, str] = json.loads(done.stdout)
        return failed

    return with_need


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the processes are forks")
@pytest.mark.parametrize(("page", "need"), runs())
def test_code_of_page_runs_and_prints_what_it_says(page, need, failures):
    if not can_run(page):
        pytest.skip("the packages of the recipes are not there: make test-recipes")
    assert page not in failures(need), f"docs/{page}\n{failures(need)[page]}"


def test_no_block_of_python_is_overlooked():
    for page in PAGES:
        fences = re.findall(
            r"^ *(?:```+|~~~+) *(?:py|python|pycon|\{ *\.python)\b", (DOCS / page).read_text(), re.M
        )
        assert len(fences) == len(blocks_of(page)), page


def test_included_code_is_that_of_tested_files():
    for page in PAGES:
        for block in blocks_of(page):
            included = _SNIPPET.fullmatch(block.code)
            if included and not runs_in_the_build(block):
                assert (ROOT / included[1]).is_file(), f"docs/{page}, line {block.line}"
                assert included[1].startswith("tests/"), f"docs/{page}, line {block.line}"


TUTORIALS = [page for page in PAGES if page.startswith("tutorials/") and blocks_of(page)]


@pytest.mark.parametrize("page", TUTORIALS)
def test_tutorial_runs_whole_when_it_is_built(page):
    """All of its blocks, and in a session of its own: the pages are built in one process."""
    for block in blocks_of(page):
        assert runs_in_the_build(block), f"docs/{page}, line {block.line}"
        assert f'session="{Path(page).stem}"' in block.options, f"docs/{page}, line {block.line}"


def test_every_framework_has_a_tutorial():
    assert {Path(page).stem for page in TUTORIALS} >= {"torch", "jax", "tensorflow", "numdiff"}


@pytest.mark.parametrize("page", TUTORIALS)
def test_tutorial_shows_what_it_prints(page):
    """A block without ``source`` is unseen; only what prepares the page may be."""
    for block in blocks_of(page):
        if "source=" in block.options:
            assert 'result="text"' in block.options or 'html="true"' in block.options, f"line {block.line}"
        else:
            assert "print(" not in block.code, f"docs/{page}, line {block.line}"


def run(page: str, need: str) -> None:
    namespace: dict[str, object] = {"__name__": "__main__"}
    for block in blocks_of(page):
        if not runs_here(block) or (block.needs and block.needs != need):
            continue
        printed = io.StringIO()
        code = compile("\n" * (block.line - 1) + block.code, f"docs/{page}", "exec")
        with contextlib.redirect_stdout(printed):
            exec(code, namespace)
        if block.output is not None and printed.getvalue() != block.output:
            found, expected = printed.getvalue(), block.output
            sys.exit(f"line {block.line}: the block printed\n{found}where the page says\n{expected}")


def main(need: str, *pages: str) -> None:
    """Run each page in a fork, and print what is said by those that fail."""
    for package in LOADED.get(need, ()):
        importlib.import_module(package)
    failed = {}
    for number, page in enumerate(pages):
        said, folder = Path(f"{number}.txt"), Path(str(number))
        folder.mkdir()
        if (process := os.fork()) == 0:
            with said.open("w") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            os.chdir(folder)
            run(page, need)
            return
        if os.waitpid(process, 0)[1]:
            failed[page] = said.read_text()
    print(json.dumps(failed))


if __name__ == "__main__":
    main(*sys.argv[1:])
