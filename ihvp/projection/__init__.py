"""Random projections of gradients, which keep their inner products."""

from ihvp.projection.projection import Projection, ProjectionKind

__all__ = ["Projection", "ProjectionKind"]
