"""Functions that have the name of the module they stand in, as ``ihvp.solvers.solve.solve``.

Python's import puts the function in the package; griffe, which does not import, would show the module.
"""

from __future__ import annotations

from typing import Any

import griffe


class Shadowed(griffe.Extension):
    """Lets an imported name mean the function, where its path is also that of a module which holds one."""

    def on_package(self, *, pkg: griffe.Module, loader: griffe.GriffeLoader, **_: Any) -> None:
        for module in [pkg, *pkg.modules.values()]:
            for name, member in module.members.items():
                if member.is_alias and self._is_module_with(name, member.target_path, loader):
                    module.members[name] = griffe.Alias(name, f"{member.target_path}.{name}", parent=module)

    @staticmethod
    def _is_module_with(name: str, path: str, loader: griffe.GriffeLoader) -> bool:
        try:
            target = loader.modules_collection[path]
            return target.is_module and name in target.members
        except (KeyError, griffe.AliasResolutionError):  # it comes from another package
            return False
