"""Threads at once on weights that are set in place get the answers of one."""

from __future__ import annotations

import threading
import time

import numpy as np

import ihvp
from ihvp_numdiff import InPlaceWeights


def test_weights_that_are_set_in_place_serve_one_thread_at_a_time():
    held = np.array([1.0, 2.0, 3.0])
    bits = held.tobytes()

    def write(values):
        for i, value in enumerate(values):  # a moment between the entries, as frameworks take it
            held[i] = value
            time.sleep(0)

    def gradient(params, batch):
        first = held[0]
        time.sleep(0)
        return np.array([first * held[1], first**2 / 2, held[2] ** 3])

    # Two objects over the same weights, as two parts of a program may make them.
    operators = [
        ihvp.Hessian(ihvp.Objective(params=InPlaceWeights(lambda: held, write), grad=gradient))
        for _ in range(2)
    ]
    v, wrong = np.array([1.0, -1.0, 2.0]), []
    expected = [[2.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 27.0]] @ v

    def work(H):
        for _ in range(50):
            if not np.allclose(H @ v, expected, rtol=1e-5):
                wrong.append(H @ v)

    workers = [threading.Thread(target=work, args=(H,)) for H in 2 * operators]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong
    assert held.tobytes() == bits
