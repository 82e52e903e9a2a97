"""The plugin's record. ihvp reads it to list the backends, so nothing here imports the framework."""

from ihvp.backend import BackendPlugin, Dialect
from ihvp.hookspecs import hookimpl


def _factory(params=None):
    from ihvp_autograd._backend import AutogradBackend

    return AutogradBackend()  # numpy's arrays are always on the CPU: params decides nothing


def _dialect():
    import autograd.numpy

    return Dialect(xp=autograd.numpy, parameters=dict)


@hookimpl
def ihvp_backend():
    return BackendPlugin(
        name="autograd",
        framework="autograd",
        install="pip install ihvp-autograd",
        factory=_factory,
        types=(),  # numpy arrays say nothing of autograd: it is chosen by name, backend="autograd"
        dialect=_dialect,
    )
