"""An entry ``folder/`` of the navigation stands for the folder's pages, ``index.md`` first, then by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def on_config(config: Any, **_: Any) -> Any:
    """Lists the pages; a folder without any leaves no entry."""
    config.nav = _expand(config.nav, Path(config.docs_dir))
    return config


def _expand(nav: list[Any], docs: Path) -> list[Any]:
    expanded = []
    for entry in nav:
        title, value = next(iter(entry.items())) if isinstance(entry, dict) else (None, entry)
        if isinstance(value, list):
            value = _expand(value, docs)
        elif value.endswith("/"):
            value = _pages(docs, value)
        if value:
            expanded.append(value if title is None else {title: value})
    return expanded


def _pages(docs: Path, folder: str) -> list[str]:
    pages = sorted((docs / folder).glob("*.md"), key=lambda page: (page.name != "index.md", page.name))
    return [page.relative_to(docs).as_posix() for page in pages]
