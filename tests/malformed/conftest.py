from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    """Many a wrong value is a path after all, and what is streamed there must not stay."""
    monkeypatch.chdir(tmp_path)
