"""Random projections of gradients, which keep their inner products."""

from ihvp.projection.projection import Projection, ProjectionKind, RandomKind

__all__ = ["Projection", "ProjectionKind", "RandomKind"]
