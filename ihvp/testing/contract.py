"""BackendContract: the tests that every backend passes."""

from ihvp.testing.capabilities import CapabilityContract
from ihvp.testing.derivatives import DerivativeContract, FailureContract
from ihvp.testing.every_method import MethodContract
from ihvp.testing.layers import LayerContract
from ihvp.testing.operators import OperatorContract


class BackendContract(
    CapabilityContract, DerivativeContract, FailureContract, LayerContract, MethodContract, OperatorContract
):
    """Inherit, set ``name``, and pytest runs the contract on that registered backend.

    Problems with known derivatives (:data:`ihvp.testing.PROBLEMS`) are the oracle; they bypass the backend.
    Tests of optional capabilities run where the plugin's record declares them, and one test compares what is
    declared with what is implemented, so that a skip hides nothing.

    Attributes
    ----------
    name : str
        The backend's registered name.

    Examples
    --------
    A plugin's whole test module:

    >>> from ihvp.testing import BackendContract
    >>> class TestMine(BackendContract):
    ...     name = "mine"
    """
