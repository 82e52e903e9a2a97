"""``--config``: a file in the place of options that are not typed."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any

import typer

from ihvp.errors import InvalidOption
from ihvp.packages import required


def _take(context: typer.Context, path: Path | None) -> Path | None:
    """Make what the file holds the defaults of the command."""
    if path is None:
        return path
    # Of an option its long name, of an argument its own.
    known = {max(parameter.opts, key=len).lstrip("-"): parameter for parameter in context.command.params}
    del known["config"]
    defaults = {}
    for key, value in _read(path).items():
        if key not in known:
            raise InvalidOption(f"A key of {path}", key, f"one of {', '.join(known)}")
        if not isinstance(value, str | int | float):
            raise InvalidOption(f"{key} in {path}", value, "one text, number, true or false")
        parameter: Any = known[key]
        # As it would be typed: the number 2.5 would be cut to an integer.
        defaults[parameter.name] = str(value)
        try:
            parameter.process_value(context, str(value))
        except typer.BadParameter as error:
            raise InvalidOption(f"{key} in {path}", value, f"what --{key} takes: {error.message}") from error
    context.default_map = defaults
    return path


def _read(path: Path) -> dict[str, Any]:
    if path.suffix == ".toml":
        load = tomllib.loads
    else:
        load = required("yaml", "--config with YAML", "pip install pyyaml", "PyYAML").safe_load
    try:
        found = load(path.read_text(encoding="utf-8"))
    except Exception as error:  # each reader has its own
        raise InvalidOption("--config", str(path), f"a file of TOML (.toml) or YAML: {error}") from error
    if not isinstance(found, dict):
        raise InvalidOption("--config", str(path), "a file of keys and values")
    return found


Config = Annotated[
    Path | None,
    typer.Option(
        callback=_take,
        is_eager=True,
        exists=True,
        dir_okay=False,
        help="A file (.toml, .yaml) of options by their long names; those that are typed come before it.",
    ),
]
"""The option of a command that has others."""
