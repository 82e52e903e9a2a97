"""LinearOperator: what every curvature matrix has in common, and all that a solver sees.

Its sums, multiples and shifts stand here too, because the class makes them.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ihvp import algebra
from ihvp.arguments import check_instance, check_number
from ihvp.backend import Vector
from ihvp.errors import TracedValue, VectorError, gigabytes, is_traced, is_tracer
from ihvp.memory import require_memory
from ihvp.space import VectorSpace

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator as ScipyLinearOperator

_log = logging.getLogger("ihvp")

# Columns of the identity that are multiplied at once where a matrix is formed.
_DENSE_COLUMNS = 64

Measure: TypeAlias = "Callable[[Vector, Vector], Any]"
"""``algebra.dot_parts`` or ``algebra.gram_parts``."""

Sampler: TypeAlias = "Callable[[np.random.Generator], LinearOperator]"
"""Draws a random matrix whose expectation is the operator that the sampler belongs to."""


class LinearOperator(ABC):
    """A symmetric ``(P, P)`` matrix that is known by its products.

    A subclass defines :meth:`apply`. ``A @ v`` takes vectors ``(P,)`` and blocks ``(P, k)`` in any form that
    :meth:`ihvp.space.VectorSpace.enter` lists, and answers in the same form. ``A + B``, ``A - B``, ``2 * A``,
    ``A + 0.01`` (meaning ``A + 0.01 I``) and ``A @ B @ A`` are operators again.

    Parameters
    ----------
    space : VectorSpace
        Where the operator's vectors live.

    Examples
    --------
    >>> import numpy as np
    >>> import ihvp
    >>> A = 2 * ihvp.Dense(np.diag([1.0, 3.0])) + 0.5
    >>> A @ np.ones(2), A.shape
    (array([2.5, 6.5]), (2, 2))
    """

    # numpy must leave `array @ A` and `scalar * A` to this class instead of looping over it.
    __array_ufunc__ = None

    def __init__(self, space: VectorSpace) -> None:
        self.space = space

    @abstractmethod
    def apply(self, v: Vector) -> Vector:
        """The product with a flat native vector or block, freshly allocated: ``@`` without the checks."""

    def measured(self, v: Vector, measure: Measure | None = None, shift: float = 0.0) -> tuple[Vector, Any]:
        """``(A + shift I) v``, freshly allocated, and what ``measure(v, …)`` says of it.

        Overridden where one compiled program gives both.
        """
        product = owned(self.apply(v), v)
        return algebra.shifted(product, v, 1.0, shift, measure) if shift or measure else (product, None)

    def followed_by(
        self, function: Callable[..., Any], v: Vector, *arguments: Any, fixed: Hashable = None
    ) -> Any:
        """``function(A v, v, *arguments, fixed)``; it may write to the product, which may not be finite.

        Overridden where one compiled program does both, which is kept for each function and ``fixed``.
        """
        return function(owned(self.apply(v), v), v, *arguments, fixed)

    def apply_traced(self, v: Vector) -> Vector:
        """The product with a vector that JAX traces, as a part of its program, where that is possible."""
        raise TracedValue("v")

    def verify(self) -> None:  # noqa: B027 - most operators have nothing to check
        """Check what products rest on, before a solver fills the memory with its vectors."""

    @property
    def is_exact(self) -> bool:
        """Whether products are exact but for rounding, so that :meth:`product_error` gives 0."""
        return type(self).product_error is LinearOperator.product_error

    def product_error(self, v: Vector) -> float:
        """An estimate of ``‖computed product − A v‖`` beyond rounding; 0 where products are exact.

        Finite differences have a noise floor that a solver must know in order to stop there.
        """
        return 0.0

    def sampler(self, batch_size: int, *, replace: bool = True) -> Sampler | None:
        """A source of random matrices, cheaper to multiply, whose expectation is this one.

        Parameters
        ----------
        batch_size : int
            The number of examples that a matrix is the mean over.
        replace : bool
            Whether an example may occur in a batch more than once. Different batches are independent.

        Returns
        -------
        callable or None
            Takes a ``numpy.random.Generator``, gives the operator of a batch. None where the matrix is no
            mean over examples.

        Raises
        ------
        InvalidOption
            The batch is larger than the data.
        DataError
            The data's batches cannot be joined.
        """
        return None

    @property
    def shape(self) -> tuple[int, int]:
        """``(P, P)``."""
        return self.space.size, self.space.size

    @property
    def dtype(self) -> Any:
        """The dtype of the vectors, that of the parameters."""
        return self.space.dtype

    @property
    def device(self) -> Any:
        """The device of the vectors."""
        return self.space.device

    def __matmul__(self, v: Any) -> Any:
        if isinstance(v, LinearOperator):
            from ihvp.operators.product import Product  # it is made of operators itself

            return Product(self, v)
        if is_tracer(v):
            self.space.check(v)
            return self.apply_traced(v)
        flat, leave = self.space.enter(v)
        return leave(self.apply(flat))

    def quadratic_form(self, x: Any) -> float | NDArray[np.float64]:
        """``xᵀ A x``: a float for a vector, ``(k,)`` for the columns of a block.

        Examples
        --------
        >>> import numpy as np
        >>> import ihvp
        >>> ihvp.Dense(np.diag([1.0, 3.0])).quadratic_form(np.array([1.0, 2.0]))
        13.0
        """
        flat, _ = self.space.enter(x)
        values = algebra.dots(flat, self.apply(flat))
        return float(values) if values.ndim == 0 else values

    @property
    def dense_nbytes(self) -> int:
        """The bytes that :meth:`to_dense` takes while it runs: the matrix, and the parts it is made of."""
        return 2 * self.space.size**2 * self.space.itemsize

    def to_dense(self) -> Vector:
        """The matrix itself, ``(P, P)`` in the native array type, by products with the identity's columns.

        The logger ``"ihvp"`` says at level INFO how much memory that takes, before any work.

        Raises
        ------
        TooLarge
            The matrix does not fit in memory; found before any product.

        Examples
        --------
        >>> import numpy as np
        >>> import ihvp
        >>> (ihvp.Dense(np.eye(2)) + 1.0).to_dense()
        array([[2., 0.],
               [0., 2.]])
        """
        return self._dense_by(self.apply)

    def _dense_by(self, product: Callable[[Vector], Vector]) -> Vector:
        """The matrix of products with blocks."""
        self._announce_dense()
        size = self.space.size
        blocks = [
            product(self.space.identity_columns(start, min(start + _DENSE_COLUMNS, size)))
            for start in range(0, size, _DENSE_COLUMNS)
        ]
        return self.space.xp.concat(blocks, axis=1)

    def _announce_dense(self) -> None:
        what = f"The dense matrix of {self!r}, while it is made,"
        _log.info("%s takes %s of memory.", what, gigabytes(self.dense_nbytes))
        require_memory(
            self.space,
            self.dense_nbytes,
            1,
            what,
            "Use its products (A @ v), or its eigenpairs: ihvp.eigsh(A, k).",
        )

    def to_scipy(self) -> ScipyLinearOperator:
        """A ``scipy.sparse.linalg.LinearOperator`` on numpy arrays, for scipy's own solvers.

        As ``hess=`` of ``scipy.optimize.minimize`` it serves ``Newton-CG`` and ``trust-constr``. The methods
        ``trust-ncg`` and ``trust-krylov`` multiply arrays alone, and want ``hessp=`` with the product itself.
        """
        from scipy.sparse.linalg import LinearOperator as ScipyLinearOperator

        dtype = algebra.to_numpy(self.space.zeros(1)[:0]).dtype

        def product(v: NDArray[Any]) -> NDArray[Any]:
            flat = self.space.asarray(np.ascontiguousarray(v, dtype=dtype))
            return algebra.to_numpy(self.apply(flat))

        def transposed(v: NDArray[Any]) -> NDArray[Any]:
            self.verify()
            return product(v)

        return ScipyLinearOperator(
            shape=self.shape,
            matvec=lambda v: product(v.reshape(-1)),
            rmatvec=lambda v: transposed(v.reshape(-1)),
            matmat=product,
            rmatmat=transposed,
            dtype=dtype,
        )

    def __add__(self, other: Any) -> LinearOperator:
        if isinstance(other, LinearOperator):
            return Sum(self, other)
        if _is_number(other):
            return Shifted(self, _real(other, "A + …"))
        return NotImplemented

    __radd__ = __add__

    def __mul__(self, other: Any) -> LinearOperator:
        if _is_number(other):
            return Scaled(self, _real(other, "… * A"))
        return NotImplemented

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> LinearOperator:
        if not _is_number(other):
            return NotImplemented
        return Scaled(self, 1.0 / _real(other, "A / …"))

    def __neg__(self) -> LinearOperator:
        return Scaled(self, -1.0)

    def __sub__(self, other: Any) -> LinearOperator:
        return self.__add__(-other)

    def __rsub__(self, other: Any) -> LinearOperator:
        return (-self).__add__(other)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(shape={self.shape}, dtype={self.dtype}, device={self.device})"


def owned(product: Vector, v: Vector) -> Vector:
    """A product with ``v`` to write to: a compiled identity hands its argument back."""
    return algebra.copy(product) if product is v else product


def require_same_space(left: LinearOperator, right: LinearOperator, verb: str) -> None:
    """Refuse to combine operators on different vectors."""
    check_operator(left)
    check_operator(right)
    if not left.space.matches(right.space):
        raise VectorError(
            f"Cannot {verb} {left!r} and {right!r}; expected operators of one shape, dtype, device and "
            "framework."
        )


def check_operator(operator: Any, option: str = "operator") -> None:
    """Refuse what is no operator."""
    check_instance(option, operator, LinearOperator, "a LinearOperator; wrap a matrix in ihvp.Dense")


def _is_number(value: Any) -> bool:
    return is_traced(value) or (np.isscalar(value) and not isinstance(value, (str, bytes)))


def _real(value: Any, place: str) -> float:
    check_number(place, value, lambda _: True, "a finite real number")
    return float(value)


class Shifted(LinearOperator):
    """``A + λ I``, of an operator A and the shift λ.

    Examples
    --------
    >>> import numpy as np
    >>> import ihvp
    >>> (ihvp.Dense(np.diag([1.0, 3.0])) + 0.5) @ np.ones(2)
    array([1.5, 3.5])
    """

    def __init__(self, operator: LinearOperator, shift: float) -> None:
        super().__init__(operator.space)
        self.operator, self.shift = operator, shift

    def apply(self, v: Vector) -> Vector:
        return self.measured(v)[0]

    def measured(self, v: Vector, measure: Measure | None = None, shift: float = 0.0) -> tuple[Vector, Any]:
        return self.operator.measured(v, measure, self.shift + shift)

    def followed_by(
        self, function: Callable[..., Any], v: Vector, *arguments: Any, fixed: Hashable = None
    ) -> Any:
        return self.operator.followed_by(combined, v, 1.0, self.shift, *arguments, fixed=(function, fixed))

    def apply_traced(self, v: Vector) -> Vector:
        return self.operator.apply_traced(v) + self.shift * v

    def verify(self) -> None:
        self.operator.verify()

    @property
    def is_exact(self) -> bool:
        return self.operator.is_exact

    def product_error(self, v: Vector) -> float:
        return self.operator.product_error(v)

    def sampler(self, batch_size: int, *, replace: bool = True) -> Sampler | None:
        draw = self.operator.sampler(batch_size, replace=replace)
        return None if draw is None else lambda generator: Shifted(draw(generator), self.shift)


def combined(product: Vector, v: Vector, factor: float, shift: float, *rest: Any) -> Any:
    """A function of ``factor A v + shift v`` as one of ``A v``, for :meth:`LinearOperator.followed_by`."""
    *arguments, (function, fixed) = rest
    return function(algebra.shifted(product, v, factor, shift, None)[0], v, *arguments, fixed)


class Scaled(LinearOperator):
    """``c A``, of an operator A and a factor c.

    Examples
    --------
    >>> import numpy as np
    >>> import ihvp
    >>> (2 * ihvp.Dense(np.diag([1.0, 3.0]))) @ np.ones(2)
    array([2., 6.])
    """

    def __init__(self, operator: LinearOperator, factor: float) -> None:
        super().__init__(operator.space)
        self.operator, self.factor = operator, factor

    def apply(self, v: Vector) -> Vector:
        return self.factor * self.operator.apply(v)

    def apply_traced(self, v: Vector) -> Vector:
        return self.factor * self.operator.apply_traced(v)

    def verify(self) -> None:
        self.operator.verify()

    def product_error(self, v: Vector) -> float:
        return abs(self.factor) * self.operator.product_error(v)

    def sampler(self, batch_size: int, *, replace: bool = True) -> Sampler | None:
        draw = self.operator.sampler(batch_size, replace=replace)
        return None if draw is None else lambda generator: Scaled(draw(generator), self.factor)


class Sum(LinearOperator):
    """``A + B``, of two operators on the same vectors.

    Raises
    ------
    VectorError
        The operators' vectors differ in length, dtype, device or framework.

    Examples
    --------
    >>> import numpy as np
    >>> import ihvp
    >>> (ihvp.Dense(np.eye(2)) + ihvp.Dense(np.ones((2, 2)))) @ np.array([1.0, 0.0])
    array([2., 1.])
    """

    def __init__(self, left: LinearOperator, right: LinearOperator) -> None:
        require_same_space(left, right, "add")
        super().__init__(left.space)
        self.left, self.right = left, right

    def apply(self, v: Vector) -> Vector:
        return algebra.axpy(self.left.apply(v), 1.0, self.right.apply(v))

    def apply_traced(self, v: Vector) -> Vector:
        return self.left.apply_traced(v) + self.right.apply_traced(v)

    def verify(self) -> None:
        self.left.verify()
        self.right.verify()

    def product_error(self, v: Vector) -> float:
        return self.left.product_error(v) + self.right.product_error(v)

    def sampler(self, batch_size: int, *, replace: bool = True) -> Sampler | None:
        left, right = (part.sampler(batch_size, replace=replace) for part in (self.left, self.right))
        if left is None and right is None:
            return None
        # A term without examples, such as a prior's precision, enters every sample as it is.
        return lambda generator: Sum(
            self.left if left is None else left(generator), self.right if right is None else right(generator)
        )
