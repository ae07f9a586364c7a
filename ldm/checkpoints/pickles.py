"""The globals that a pickle names, read without running it, and inert stand-ins for those of training frameworks.

`torch.load(weights_only=True)` builds tensors and plain containers, and stops at every other global. A checkpoint of a
training framework names its callbacks and settings beside the weights; here each such name gets a class that does
nothing, so that the tensors can be read. A name that could run something is never one of them.
"""

import _compat_pickle
import pickletools
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any, BinaryIO

# A file that names a global of these modules, or of a module below them, means to run something.
HOSTILE_MODULES = frozenset(
    ("os", "posix", "nt", "subprocess", "sys", "builtins", "importlib", "runpy", "socket", "shutil")
)

# Built-in types that stand for plain data, and never for something to be done.
PLAIN_BUILTINS = frozenset(
    ("bool", "complex", "dict", "float", "frozenset", "int", "list", "object", "range", "set", "slice", "str", "tuple")
)

# A file of a few kilobytes can ask for copies of copies until the memory is full, or for a key that takes for ever to
# hash. A checkpoint of ten thousand tensors has less than a million objects.
MAX_OBJECTS = 10_000_000

# What a damaged pickle raises.
DAMAGE = (ValueError, TypeError, LookupError, EOFError, OverflowError, MemoryError, struct.error)


class HostilePickleError(Exception):
    """The pickle names a global that could run something; the message is its dotted name."""


class _Inert:
    """Stands for a class or function that is not there: takes any arguments and state, and keeps nothing."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        return object.__new__(cls)

    def __setstate__(self, _: Any) -> None:
        pass


class _InertMapping(_Inert):
    """Stands for a kind of dictionary, which torch fills with items: it gives an empty one."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        return OrderedDict()


def stand_ins(names: Iterable[str]) -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """Return an inert class for each dotted name, as `torch.serialization.safe_globals` takes them."""
    return [(type("Inert", (_InertMapping if name.lower().endswith("dict") else _Inert,), {}), name) for name in names]


def named_globals(pickles: Iterable[bytes]) -> set[str]:
    """Return the dotted names of the globals that pickles ask for, under today's names where they use Python 2's.

    A damaged pickle is searched as far as it can be followed: that it is hostile matters more than that it is damaged.

    Raises:
        HostilePickleError: one could run something.
        ValueError: one asks for nothing but memory.
    """
    found: set[str] = set()
    for content in pickles:
        for module, name in _globals(content):
            module, name = _compat_pickle.NAME_MAPPING.get((module, name), (module, name))
            module = _compat_pickle.IMPORT_MAPPING.get(module, module)
            # A name with dots asks for an attribute of an attribute: "os.system" of a module that imports os, say.
            modules = {module.partition(".")[0], *name.split(".")[:-1]}
            if (module, name) == ("builtins", "bytearray"):
                raise ValueError("it reserves memory for bytes, and weights are not bytes")
            if modules & HOSTILE_MODULES and not (module == "builtins" and name in PLAIN_BUILTINS):
                raise HostilePickleError(f"{module}.{name}")
            found.add(f"{module}.{name}")
    return found


def _globals(content: bytes) -> Iterable[tuple[str, str]]:
    texts = ["", ""]
    try:
        for opcode, argument, _ in pickletools.genops(content):
            if opcode.name in ("GLOBAL", "INST"):
                module, _, name = str(argument).partition(" ")
                yield module, name
            elif opcode.name == "STACK_GLOBAL":
                yield texts[0], texts[1]
            elif isinstance(argument, str):
                texts = [texts[1], argument]
    except DAMAGE:
        return


def split_pickles(stream: BinaryIO, count: int) -> list[bytes]:
    """Return the first ``count`` pickles of a stream, or those up to the first damaged one, and what there is of it."""
    pickles = []
    for _ in range(count):
        start, whole = stream.tell(), True
        try:
            for _ in pickletools.genops(stream):
                pass
        except DAMAGE:
            whole = False
        end = stream.tell()
        stream.seek(start)
        pickles.append(stream.read(end - start))
        if not whole:
            break
    return pickles


def check_extent(content: bytes) -> None:
    """Follow a pickle's stack, and count an object as often as a copy or a hash of what it is in would visit it.

    torch bounds neither: a tuple of twice a tuple of twice a tuple and so on, as a key, would never be hashed.

    Raises:
        ValueError: there are more than `MAX_OBJECTS`, or the pickle is damaged.
    """
    stack: list[list[int]] = []  # how many objects each one holds, itself included; an entry is shared as its object is
    memo: dict[Any, list[int]] = {}
    visits = 0
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name == "MARK":
            stack.append(_MARK)
        elif "GET" in opcode.name:
            stack.append(memo[argument])
        elif "PUT" in opcode.name:
            memo[argument] = stack[-1]
        else:
            parts = _take(stack, opcode)
            held = sum(part[0] for part in parts)
            if opcode.name in _FILLING:
                parts[0][0] = held
                stack.append(parts[0])
            else:
                stack.extend([1 + held] for _ in opcode.stack_after)
                visits += held
            if max(held, visits) > MAX_OBJECTS:
                raise ValueError(f"it builds more than {MAX_OBJECTS:,} objects")


_MARK = [0]  # on the stack: here a run of items begins
# Opcodes that put what lies above an object on the stack into it.
_FILLING = frozenset(("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"))


def _take(stack: list[list[int]], opcode: pickletools.OpcodeInfo) -> list[list[int]]:
    """Take from the stack what an opcode takes."""
    before, parts = opcode.stack_before, []
    if pickletools.markobject in before:
        while (top := stack.pop()) is not _MARK:
            parts.append(top)
        before = before[: before.index(pickletools.markobject)]
    parts += [stack.pop() for _ in before]
    if any(part is _MARK for part in parts):
        raise ValueError("a mark where an object should be")
    return parts[::-1]
