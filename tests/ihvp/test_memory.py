"""What devices say of their free memory."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

from ihvp.errors import TooLarge
from ihvp.memory import free_memory, on_host, require_memory
from ihvp.space import VectorSpace


def on(device):
    return VectorSpace(3, np.dtype("float32"), device, np)


@pytest.mark.parametrize("device", ["cpu", SimpleNamespace(type="cpu"), SimpleNamespace(platform="cpu")])
def test_the_host_tells_what_the_system_has(device):
    assert on_host(on(device))
    assert 0.5 <= free_memory(on(device)) / psutil.virtual_memory().available <= 2


def test_a_jax_device_tells_by_its_statistics():
    statistics = {"bytes_limit": 1000, "bytes_in_use": 300}
    device = SimpleNamespace(platform="gpu", memory_stats=lambda: statistics)
    assert not on_host(on(device))
    assert free_memory(on(device)) == 700


def test_torch_tells_what_the_device_has_and_what_it_holds_for_later(monkeypatch):
    cuda = SimpleNamespace(
        mem_get_info=lambda device: (1000, 5000),
        memory_reserved=lambda device: 80,
        memory_allocated=lambda device: 50,
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    assert free_memory(on(SimpleNamespace(type="cuda"))) == 1030


@pytest.mark.parametrize(
    "device", [SimpleNamespace(type="mps"), SimpleNamespace(platform="tpu", memory_stats=lambda: None)]
)
def test_other_devices_do_not_tell(monkeypatch, device):
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(mps=SimpleNamespace()))
    assert free_memory(on(device)) is None


def test_what_exceeds_the_free_memory_is_refused_with_both_figures():
    device = SimpleNamespace(platform="gpu", memory_stats=lambda: {"bytes_limit": 3e9, "bytes_in_use": 1e9})
    require_memory(on(device), 2 * 10**9, 1, "The matrix", "")
    with pytest.raises(TooLarge, match="The matrix takes 4 GB of memory; 2 GB are free"):
        require_memory(on(device), 10**9, 4, "The matrix", "Use less.")
