"""``ihvp backends``: a table of what is registered, installed and working."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ihvp._registry import BackendInfo, backends, usable_plugin
from ihvp.errors import BackendNotInstalled

_WIDTHS = {"Framework": 17, "Capabilities": 17, "State": 12}


@dataclass(frozen=True)
class _State:
    """What trying a backend showed: the device it works on, and a remark."""

    device: str
    remark: str


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
            state = _try(info) if load else _state_unloaded(info)
        table.add_row(
            info.name,
            f"{info.framework or '–'} {info.version or ''}".rstrip(),
            state.device,
            "\n".join(sorted(info.capabilities)) or "–",
            escape(state.remark),
        )
    console.print(table)


def _state_unloaded(info: BackendInfo) -> _State:
    if info.error is not None:
        return _State("–", info.error)
    return _State("–", "installed, not loaded" if info.installed else info.install)


def _try(info: BackendInfo) -> _State:
    if info.error is not None or not info.installed:
        return _state_unloaded(info)
    try:
        return _State(usable_plugin(info.name).factory().device, "works")
    except BackendNotInstalled:
        return _State("–", info.install)
    except Exception as error:  # a framework may fail in any way, and the other rows are still wanted
        return _State("–", f"{type(error).__name__}: {error}")
