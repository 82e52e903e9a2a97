"""``ihvp backends``: a table of what is registered, installed and working."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ihvp._registry import BackendInfo, backends, usable_plugin
from ihvp.errors import BackendNotInstalled

_WIDTHS = {"Framework": 17, "Capabilities": 17, "State": 12}


def show(console: Console, *, load: bool) -> None:
    """Print the table.

    Without ``load`` no framework is imported, and neither the device nor a defect shows.
    """
    table = Table(title="Backends of ihvp")
    for column in ("Name", "Framework", "Device", "Capabilities", "State"):
        # 80 columns hold the longest name of a capability and of a framework whole.
        table.add_column(column, overflow="fold", min_width=_WIDTHS.get(column))
    for info in backends():
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
