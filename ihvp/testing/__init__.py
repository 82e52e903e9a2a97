"""The contract suite: what a backend must do, as tests that a plugin's author inherits.

A plugin's test module needs two lines (pytest collects the inherited tests)::

    from ihvp.testing import BackendContract

    class TestMyBackend(BackendContract):
        name = "mybackend"

and the same suite runs for any registered backend by
``ihvp contract mybackend``, which is short for
``pytest -p ihvp.testing.option --pyargs ihvp.testing --ihvp-backend mybackend``.
"""

import pytest

pytest.register_assert_rewrite(
    *(
        f"ihvp.testing.{part}"
        for part in ("case", "capabilities", "derivatives", "every_method", "layers", "operators")
    )
)

from ihvp._problems import PROBLEMS, Problem  # noqa: E402
from ihvp.testing.contract import BackendContract  # noqa: E402 - after its asserts are registered

__all__ = ["PROBLEMS", "BackendContract", "Problem"]
