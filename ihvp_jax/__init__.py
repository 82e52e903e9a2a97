"""The JAX backend of ihvp: any pytree of floating arrays, compiled once for each loss and shape."""
