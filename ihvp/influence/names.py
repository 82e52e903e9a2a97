"""What the code of a function names, and what it changes while it runs."""

from __future__ import annotations

import dis
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from types import CodeType

_LOADS_VARIABLE = {"LOAD_GLOBAL", "LOAD_NAME", "LOAD_DEREF"}
_LOADS_ATTRIBUTE = {"LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR"}
_STORES_VARIABLE = {"STORE_GLOBAL", "DELETE_GLOBAL", "STORE_DEREF"}
_STORES_ATTRIBUTE = {"STORE_ATTR", "DELETE_ATTR"}
_STORES_ITEM = {"STORE_SUBSCR", "DELETE_SUBSCR"}
_CHANGING_METHODS = {
    "add", "append", "appendleft", "clear", "discard", "extend", "insert", "pop", "popitem", "popleft",
    "remove", "setdefault", "update",
}  # fmt: skip


@dataclass(frozen=True)
class Names:
    """Of a code and those within it.

    Attributes
    ----------
    variables, attributes : frozenset of str
        That it reads from its module, and from objects.
    changed_variables, changed_attributes : frozenset of str
        That it assigns, or writes items of: counters, caches and logs.
    """

    variables: frozenset[str]
    attributes: frozenset[str]
    changed_variables: frozenset[str]
    changed_attributes: frozenset[str]


@functools.lru_cache(maxsize=1024)
def names_in(code: CodeType) -> Names:
    """Reads the instructions of a code.

    >>> source = "loss.calls += 1; cache[model.size] = model.scale"
    >>> names_in(compile(source, "", "exec")).changed_attributes
    frozenset({'calls'})
    """
    variables, attributes = set[str](), set[str]()
    changed_variables, changed_attributes = set[str](), set[str]()
    for part in _codes(code):
        instructions = list(dis.get_instructions(part))
        for place, instruction in enumerate(instructions):
            name, changed = instruction.argval, None
            if instruction.opname in _LOADS_VARIABLE:
                variables.add(name)
            elif instruction.opname in _LOADS_ATTRIBUTE:
                attributes.add(name)
                if name in _CHANGING_METHODS:
                    changed = instructions[place - 1]
            elif instruction.opname in _STORES_VARIABLE:
                changed_variables.add(name)
            elif instruction.opname in _STORES_ATTRIBUTE:
                changed_attributes.add(name)
            elif instruction.opname in _STORES_ITEM:
                changed = _container(instructions, place)
            if changed is not None and changed.opname in _LOADS_ATTRIBUTE:
                changed_attributes.add(changed.argval)
            elif changed is not None and changed.opname in _LOADS_VARIABLE:
                changed_variables.add(changed.argval)
    return Names(*map(frozenset, (variables, attributes, changed_variables, changed_attributes)))


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _container(instructions: list[dis.Instruction], place: int) -> dis.Instruction | None:
    """What loads the container that an item is stored in: the instruction before those of the key."""
    if instructions[place - 1].opname == "SWAP":
        # An augmented assignment: container and key are copied to read the item first.
        while place > 1 and not instructions[place].opname == instructions[place - 1].opname == "COPY":
            place -= 1
        place -= 1
    on_stack = 0
    for number in range(place - 1, 0, -1):
        instruction = instructions[number]
        on_stack += dis.stack_effect(instruction.opcode, instruction.arg, jump=False)
        if on_stack == 1:
            return instructions[number - 1]
    return None
