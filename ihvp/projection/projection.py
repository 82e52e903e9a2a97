"""What a random projection is to be, told before the model is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from ihvp.arguments import check_choice, check_integer, check_seed

RandomKind: TypeAlias = Literal["sparse", "rademacher", "gaussian", "factored"]
ProjectionKind: TypeAlias = Literal[RandomKind, "eigen"]


@dataclass(frozen=True)
class Projection:
    r"""A random matrix R, ``(dim, P)``, with :math:`E[R^T R] = I`: inner products are kept on average.

    .. math:: E\,\langle R x, R y\rangle = \langle x, y\rangle, \qquad
        \operatorname{Var} \le \frac{\|x\|^2 \|y\|^2 + \langle x, y\rangle^2}{dim}

    The matrix follows from the seed alone, on every framework and device, and is never whole in memory.

    Parameters
    ----------
    dim : int
        How many numbers are kept of a gradient; at most P.
    kind : {"sparse", "rademacher", "gaussian", "factored", "eigen"}
        "sparse": one ±1 in each column, at one addition a parameter (Kane and Nelson, "Sparser
        Johnson–Lindenstrauss transforms", JACM 61, 2014). "rademacher", "gaussian": independent entries, at
        dim multiplications a parameter. "factored": for each layer of a model a product
        :math:`R_{out} \otimes R_{in}` of random orthonormal rows, so that the gradient of an example is never
        formed (Choe et al., "What is your data worth to GPT?", 2024, section 3.1); its variance is larger,
        and parameters outside of layers are left out. At most dim numbers, shared by the layers. "eigen": not
        random, but the coordinates along the eigenvectors of an index's ``curvature`` with the largest
        eigenvalues. It loses least where dim is half of P or more, and far more than a random projection
        where it is a small part: few examples differ in directions that many have in common.
    seed : int

    Examples
    --------
    >>> import ihvp
    >>> ihvp.Projection(256, "rademacher")
    Projection(dim=256, kind='rademacher', seed=0)
    """

    dim: int
    kind: ProjectionKind = "sparse"
    seed: int = 0

    def __post_init__(self) -> None:
        check_integer("dim", self.dim, 1)
        check_choice("kind", self.kind, get_args(ProjectionKind))
        check_seed(self.seed)
        # As Python's own numbers, which go to files.
        object.__setattr__(self, "dim", int(self.dim))
        object.__setattr__(self, "seed", int(self.seed))
