"""Reads pickles as data, without running them.

A pickle is a program for a small stack machine, and Python's own machine imports and calls whatever the program names.
The machine here calls nothing but the functions of a table that its user gives. A global outside the table becomes a
`Placeholder`, which swallows calls, state and items; one that only a hostile file would name ends the reading.
"""

import _compat_pickle
import contextlib
import pickletools
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO

# A file that names a global of these modules, or of a module below them, means to run something.
HOSTILE_MODULES = frozenset(
    ("os", "posix", "nt", "subprocess", "sys", "builtins", "importlib", "runpy", "socket", "shutil")
)

# Built-in types that stand for plain data, and never for something to be done.
PLAIN_BUILTINS = frozenset(("bool", "complex", "float", "int", "object", "range", "slice", "str"))

# A file of a few kilobytes can ask for copies of copies until the memory is full. A checkpoint of ten thousand tensors
# has less than a million objects.
MAX_OBJECTS = 10_000_000

_DAMAGE = (ValueError, TypeError, LookupError, EOFError, OverflowError, MemoryError, struct.error)


class HostilePickleError(Exception):
    """The pickle names a global that could run something; the message is its dotted name."""


class Placeholder:
    """Inert stand-in for a global, for what calling it would have given, or for a key that cannot be one.

    It can be a key of a dictionary. Nothing is kept of what the pickle does to it.
    """

    def __init__(self, origin: str) -> None:
        self.origin = origin


class Function:
    """Marks an entry of the table of globals that the pickle may call, with positional arguments."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self.call = call


def apply(function: Any, arguments: Any) -> Any:
    """Do what a pickle's call asks for: a `Function` is called, a `Placeholder` gives another one.

    Raises:
        TypeError: ``function`` is neither, or the arguments are not a tuple.
    """
    if not isinstance(arguments, tuple):
        raise TypeError("the arguments of a call must be a tuple")
    if isinstance(function, Function):
        return function.call(*arguments)
    if isinstance(function, Placeholder):
        return Placeholder(function.origin)
    raise TypeError(f"a {type(function).__name__} cannot be called")


def _as_key(value: Any) -> Any:
    """Return what stands for ``value`` as a key: itself when it is a scalar or a flat tuple of scalars.

    Hashing nested tuples recurses without a limit and may take for ever; no checkpoint needs such keys.
    """
    parts = value if isinstance(value, tuple) else (value,)
    nested = any(isinstance(part, tuple | frozenset | list | dict | set | bytearray) for part in parts)
    return Placeholder("key") if nested else value


def _items(*arguments: Any) -> Iterator[Any]:
    """Iterate over a container's only argument, which may be left out or be a placeholder."""
    plain = bool(arguments) and isinstance(arguments[0], list | tuple | set | frozenset | dict)
    return iter(arguments[0] if plain else ())


def _dict(*arguments: Any) -> dict[Any, Any]:
    """Make a dictionary of pairs. A defaultdict's factory, which is no list of pairs, makes an empty one."""
    pairs = arguments[0].items() if arguments and isinstance(arguments[0], dict) else _items(*arguments)
    return {_as_key(key): value for key, value in pairs}


# Of bytes nothing is read, so a call for them (which could ask for any number of them) gives none.
_CONTAINERS = {
    "collections.OrderedDict": Function(_dict),
    "collections.defaultdict": Function(_dict),
    "collections.Counter": Function(_dict),
    "builtins.dict": Function(_dict),
    "builtins.list": Function(lambda *items: list(_items(*items))),
    "builtins.tuple": Function(lambda *items: tuple(_items(*items))),
    "builtins.set": Function(lambda *items: set(map(_as_key, _items(*items)))),
    "builtins.frozenset": Function(lambda *items: frozenset(map(_as_key, _items(*items)))),
    "builtins.bytes": Function(lambda *_: b""),
    "builtins.bytearray": Function(lambda *_: b""),
}


class PickleReader:
    """Reads pickles of any protocol as data.

    Args:
        table: what the globals of interest stand for, by dotted name: a `Function`, or an immutable value. Plain
            containers are there already.
        persistent_load: gives the object of a persistent id.

    Attributes:
        placeholders: dotted names of the globals met that are not in the table.
    """

    def __init__(self, table: Mapping[str, Any], persistent_load: Callable[[Any], Any] | None = None) -> None:
        self._table = {**_CONTAINERS, **table}
        self._persistent_load = persistent_load
        self.placeholders: set[str] = set()

    def load(self, stream: BinaryIO) -> Any:
        """Read one pickle and leave the stream right behind it.

        Raises:
            HostilePickleError: it names a global of `HOSTILE_MODULES`.
            ValueError: it is damaged, or uses what no checkpoint does.
        """
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._objects = 0
        try:
            opcodes = pickletools.genops(stream)
            for opcode, argument, _ in opcodes:
                if opcode.name == "STOP":
                    return self._stack.pop()
                self._step(opcode.name, argument)
        except _DAMAGE as error:
            self._search(opcodes)
            raise ValueError(f"damaged pickle: {error}") from error
        raise ValueError("damaged pickle: it has no end")

    def _search(self, opcodes: Iterator[tuple[Any, Any, Any]]) -> None:
        """Look through the rest of a damaged pickle for hostile names: that it is hostile matters more."""
        texts = ["", ""]
        with contextlib.suppress(*_DAMAGE):
            for opcode, argument, _ in opcodes:
                if opcode.name in ("GLOBAL", "INST"):
                    self._global(argument)
                elif opcode.name == "STACK_GLOBAL":
                    self._find_global(*texts)
                elif isinstance(argument, str):
                    texts = [texts[1], argument]

    def _spend(self, objects: int) -> None:
        self._objects += objects
        if self._objects > MAX_OBJECTS:
            raise ValueError(f"it builds more than {MAX_OBJECTS:,} objects")

    def _step(self, name: str, argument: Any) -> None:
        self._spend(1)
        if name in _LITERALS:
            self._stack.append(argument)
        elif name in _NEW:
            self._stack.append(_NEW[name]())
        elif name in _OPERATIONS:
            _OPERATIONS[name](self, argument)
        elif name not in _WITHOUT_EFFECT:
            raise ValueError(f"opcode {name} has no place in a checkpoint")

    def _find_global(self, module: str, name: str) -> None:
        """Push what a global stands for. It is looked up in the table by its whole name, and never imported."""
        module, name = _compat_pickle.NAME_MAPPING.get((module, name), (module, name))  # Python 2's names
        module = _compat_pickle.IMPORT_MAPPING.get(module, module)
        full = f"{module}.{name}"
        if full in self._table:
            self._stack.append(self._table[full])
            return
        # A name with dots asks for an attribute of an attribute: "os.system" of a module that imports os, say.
        modules = {module.partition(".")[0], *name.split(".")[:-1]}
        if modules & HOSTILE_MODULES and not (module == "builtins" and name in PLAIN_BUILTINS):
            raise HostilePickleError(full)
        self.placeholders.add(full)
        self._stack.append(Placeholder(full))

    def _global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._find_global(module, name)

    def _stack_global(self, _: Any) -> None:
        module, name = self._pop(2)
        if not (isinstance(module, str) and isinstance(name, str)):
            raise TypeError("the name of a global must be text")
        self._find_global(module, name)

    def _inst(self, argument: str) -> None:
        arguments = self._pop_to_mark()
        self._global(argument)
        self._call(self._stack.pop(), tuple(arguments))

    def _obj(self, _: Any) -> None:
        function, *arguments = self._pop_to_mark()
        self._call(function, tuple(arguments))

    def _reduce(self, _: Any) -> None:
        function, arguments = self._pop(2)
        self._call(function, arguments)

    def _newobj_ex(self, _: Any) -> None:
        function, arguments, _keywords = self._pop(3)  # no function of a table takes keywords
        self._call(function, arguments)

    def _call(self, function: Any, arguments: Any) -> None:
        for argument in arguments if isinstance(arguments, tuple) else ():
            if isinstance(argument, list | tuple | set | frozenset | dict):
                self._spend(len(argument))  # what a container is made of is copied
        self._stack.append(apply(function, arguments))

    def _build(self, _: Any) -> None:
        self._pop(1)  # a placeholder's state, or attributes of a container: neither is kept

    def _persistent(self, _: Any) -> None:
        if self._persistent_load is None:
            raise ValueError("a persistent id where none may be")
        self._stack.append(self._persistent_load(self._stack.pop()))

    def _pop(self, count: int) -> list[Any]:
        if len(self._stack) < count:
            raise IndexError("the stack has run empty")
        items = self._stack[-count:]
        del self._stack[-count:]
        return items

    def _pop_to_mark(self) -> list[Any]:
        for i in range(len(self._stack) - 1, -1, -1):
            if self._stack[i] is _MARK:
                items = self._stack[i + 1 :]
                del self._stack[i:]
                return items
        raise IndexError("no mark on the stack")

    def _add(self, items: list[Any]) -> None:
        """Put items into the list or set on top of the stack."""
        target = self._stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif isinstance(target, set):
            target.update(map(_as_key, items))
        elif not isinstance(target, Placeholder):
            raise TypeError(f"items for a {type(target).__name__}")

    def _set(self, items: list[Any]) -> None:
        """Put keys and values, in turn, into the dictionary on top of the stack."""
        target = self._stack[-1]
        if isinstance(target, dict):
            target.update(_dict(list(zip(items[::2], items[1::2], strict=True))))
        elif not isinstance(target, Placeholder):
            raise TypeError(f"keys for a {type(target).__name__}")

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _memoize(self, index: int | None) -> None:
        self._memo[len(self._memo) if index is None else index] = self._stack[-1]


class _Mark:
    """On the stack: here a run of items begins."""


_MARK = _Mark()

# Opcodes whose argument is the value itself.
_LITERALS = frozenset(
    (
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    )
)
_NEW: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
    "MARK": lambda: _MARK,
}
_WITHOUT_EFFECT = frozenset(("PROTO", "FRAME"))
# Left out: EXT1 to EXT4 (extension codes), PERSID (text ids) and out-of-band buffers.
_OPERATIONS: dict[str, Callable[[PickleReader, Any], Any]] = {
    "GLOBAL": PickleReader._global,
    "STACK_GLOBAL": PickleReader._stack_global,
    "INST": PickleReader._inst,
    "OBJ": PickleReader._obj,
    "REDUCE": PickleReader._reduce,
    "NEWOBJ": PickleReader._reduce,
    "NEWOBJ_EX": PickleReader._newobj_ex,
    "BUILD": PickleReader._build,
    "BINPERSID": PickleReader._persistent,
    "TUPLE": lambda self, _: self._push(tuple(self._pop_to_mark())),
    "TUPLE1": lambda self, _: self._push(tuple(self._pop(1))),
    "TUPLE2": lambda self, _: self._push(tuple(self._pop(2))),
    "TUPLE3": lambda self, _: self._push(tuple(self._pop(3))),
    "LIST": lambda self, _: self._push(self._pop_to_mark()),
    "DICT": lambda self, _: self._push(_dict(list(zip(*[iter(self._pop_to_mark())] * 2, strict=True)))),
    "FROZENSET": lambda self, _: self._push(frozenset(map(_as_key, self._pop_to_mark()))),
    "APPEND": lambda self, _: self._add(self._pop(1)),
    "APPENDS": lambda self, _: self._add(self._pop_to_mark()),
    "ADDITEMS": lambda self, _: self._add(self._pop_to_mark()),
    "SETITEM": lambda self, _: self._set(self._pop(2)),
    "SETITEMS": lambda self, _: self._set(self._pop_to_mark()),
    "PUT": PickleReader._memoize,
    "BINPUT": PickleReader._memoize,
    "LONG_BINPUT": PickleReader._memoize,
    "MEMOIZE": PickleReader._memoize,
    "GET": lambda self, index: self._push(self._memo[index]),
    "BINGET": lambda self, index: self._push(self._memo[index]),
    "LONG_BINGET": lambda self, index: self._push(self._memo[index]),
    "DUP": lambda self, _: self._push(self._stack[-1]),
    "POP": lambda self, _: self._pop(1),
    "POP_MARK": lambda self, _: self._pop_to_mark(),
}
