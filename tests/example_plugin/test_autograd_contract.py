from ihvp.testing import BackendContract


class TestAutograd(BackendContract):
    name = "autograd"
