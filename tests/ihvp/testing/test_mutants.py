from __future__ import annotations
import pytest

@pytest.mark.parametrize("approximate", [False, True])
def test_what_mutants_are_made_of_passes(suite, approximate):
    contract = suite(approximate=approximate)
    for test in contract.tests:
        contract.run(test)
