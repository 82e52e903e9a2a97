"""``ihvp backends``: a table of what is registered, installed and working."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import ihvp
from ihvp._registry import BackendInfo, usable_plugin
from ihvp.errors import BackendNotInstalled

_WIDTHS = {"Framework": 17, "Capabilities": 17, "State": 12}


def backends(
    load: Annotated[
        bool,
        typer.Option(help="Import each framework to see that it works and on which device (some seconds)."),
    ] = True,
) -> None:
    """List the backends: which are installed, on what device they work, and how to install the others.

    A backend connects ihvp to one framework. "numdiff" needs none: it differentiates a gradient numerically.
    """
    console, table = Console(), Table(title="Backends of ihvp")
    for column in ("Name", "Framework", "Device", "Capabilities", "State"):
        # 80 columns hold the longest name of a capability and of a framework whole.
        table.add_column(column, overflow="fold", min_width=_WIDTHS.get(column))
    for info in ihvp.backends():
        with console.status(f"Loading {info.name} …"):
            device, remark = _try(info) if load else ("–", _unloaded(info))
        table.add_row(
            info.name,
            f"{info.framework or '–'} {info.version or ''}".rstrip(),
            device,
            "\n".join(sorted(info.capabilities)) or "–",
            escape(remark),
        )
    console.print(table)


def _unloaded(info: BackendInfo) -> str:
    return info.error or ("installed, not loaded" if info.installed else info.install)


def _try(info: BackendInfo) -> tuple[str, str]:
    """The device that a backend works on, and a remark."""
    if info.error is not None or not info.installed:
        return "–", _unloaded(info)
    try:
        return usable_plugin(info.name).factory().device, "works"
    except BackendNotInstalled:
        return "–", info.install
    except Exception as error:  # a framework may fail in any way, and the other rows are still wanted
        return "–", f"{type(error).__name__}: {error}"
