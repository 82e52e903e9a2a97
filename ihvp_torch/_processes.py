"""Sums over the processes of ``torch.distributed`` that end when one of them fails."""

from __future__ import annotations

import time
from contextlib import suppress
from datetime import timedelta
from typing import Any, NamedTuple

import torch.distributed
from torch import Tensor

from ihvp.errors import ParameterError, ProcessFailed

# How often a process that waits looks for failures, and how long one that failed waits for the others to.
_LOOK, _PATIENCE = timedelta(seconds=1), 45.0


class _Failure(NamedTuple):
    """That of one process: after how many sums, whether others had begun one more, and why."""

    sums: int
    alone: bool
    why: str


class Group:
    """The default process group, whose processes leave word in its store when they fail.

    After an error that all had at the same place they may go on. After one that some had alone they may not:
    the sum that the others had begun would take what is sent next for its own.
    """

    def __init__(self, store: Any) -> None:
        self.store, self._sums = store, 0
        self.rank, self.size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        self._failure: _Failure | None = None  # the last one of this process
        self._is_shared = True  # whether the others are known to have had it

    def tell(self, error: BaseException) -> None:
        """Leave word that this process has failed."""
        waited = isinstance(error, ProcessFailed)
        failure = self._failure = _Failure(self._sums - waited, waited, f"{type(error).__name__}: {error}")
        self._is_shared = False
        with suppress(RuntimeError):  # the store ends with the process that has it
            self.store.set(_key(self.rank), f"{failure.sums}|{failure.alone:d}|{failure.why}")

    def sum(self, total: Tensor) -> None:
        """The sum over all processes, in place; ProcessFailed where one of them does not come."""
        if not self._is_shared:
            self._await_others()
        self._sums += 1
        work, is_lost = _begun(total), False
        while True:
            # It may arrive just after the wait for it has ended, also from a process that has then gone, and
            # the store with it: only what raises once more has failed.
            is_last = is_lost or work.is_completed()
            try:
                _wait(work, total.device.type)
                return
            except RuntimeError as error:
                own, failures = None if self._failure is None else self._failure.sums, self._failures()
                is_lost = failures is None
                for rank, failure in (failures or {}).items():
                    if failure.sums < self._sums and failure.sums != own:
                        raise ProcessFailed(rank, failure.why) from error
                if is_last:
                    raise ProcessFailed(None, str(error)) from error

    def _await_others(self) -> None:
        """Wait until all others have failed at the same place."""
        end, own = time.monotonic() + _PATIENCE, self._failure
        assert own is not None
        while True:
            others = self._failures()
            is_hopeless = others is None or any(other.alone for other in others.values())
            if own.alone or is_hopeless or time.monotonic() > end:
                raise ProcessFailed(self.rank, own.why)
            if sum(other.sums == own.sums for other in (others or {}).values()) == self.size - 1:
                self._is_shared = True
                return
            time.sleep(0.01)

    def _failures(self) -> dict[int, _Failure] | None:
        """The last failure of each other process that had one; None where the store is gone."""
        found = {}
        try:
            for rank in range(self.size):
                if rank != self.rank and self.store.check([_key(rank)]):
                    sums, alone, why = self.store.get(_key(rank)).decode().split("|", 2)
                    found[rank] = _Failure(int(sums), alone == "1", why)
        except RuntimeError:
            return None
        return found


def _begun(total: Tensor) -> Any:
    try:
        return torch.distributed.all_reduce(total, async_op=True)
    except RuntimeError as error:
        if "No backend type" not in str(error):
            raise ProcessFailed(None, str(error)) from error
        kinds = torch.distributed.get_backend()
        raise ParameterError(
            f"The processes are connected by {kinds}, which cannot add up what is on {total.device}; "
            "expected the parameters on a device of that kind, or another kind: "
            "init_process_group('cpu:gloo,cuda:nccl') serves both."
        ) from error


def _wait(work: Any, kind: str) -> None:
    """Wait for a sum on this kind of device, for some time; RuntimeError where it does not come."""
    if kind == "cpu":
        work.wait(_LOOK)
        return
    # nccl's own wait returns at once, and a sum that does not come would end the process after minutes.
    end = time.monotonic() + _LOOK.total_seconds()
    while not work.is_completed():
        if time.monotonic() > end:
            raise RuntimeError("no answer from the other processes")
        time.sleep(1e-4)
    work.wait()


def _key(rank: int) -> str:
    return f"ihvp/failed/{rank}"


_known: list[Group] = []


def group() -> Group | None:
    """The processes of this one; None where ``torch.distributed`` is not set up."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return None
    store = torch.distributed.distributed_c10d._get_default_store()
    if not _known or _known[0].store is not store:
        _known[:] = [Group(store)]
    return _known[0]
