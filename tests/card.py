"""A pretended card: tensors on a device of their own that compute on the processor, and refuse to mix with its tensors.

`card()` gives the device. Any operation between a tensor of the card and one of the processor raises, as on CUDA; a
tensor of one number may come from the processor there too. So the paths of a card run where there is none. With
TEST_CARD=cuda in the environment programs run on a real card (`scripts/check_card.sh`).
"""

import json
import multiprocessing
import os
import sys
from collections import Counter
from contextlib import nullcontext
from functools import cache
from multiprocessing.pool import ThreadPool
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_map_only
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "card"
REAL = os.environ.get("TEST_CARD")
GENERATOR = torch.Generator
aten = torch.ops.aten


class CardTensor(torch.Tensor):
    """A tensor that says it is on the card; ``raw`` is where its numbers are."""

    raw: torch.Tensor
    traffic: ClassVar[Counter[str]] = Counter()  # copies to and from the card, and reads of numbers

    @staticmethod
    def __new__(cls, raw: torch.Tensor) -> "CardTensor":
        layout: dict[str, Any] = {}
        if raw.layout is torch.strided:
            layout = {"strides": raw.stride(), "storage_offset": raw.storage_offset()}
        tensor = torch.Tensor._make_wrapper_subclass(
            cls, raw.shape, **layout, dtype=raw.dtype, device=torch.device(f"{NAME}:0")
        )
        tensor.raw = raw
        return tensor

    def __repr__(self) -> str:  # type: ignore[override]
        return f"CardTensor({self.raw!r})"

    def tolist(self) -> Any:
        _count_read()
        return self.raw.tolist()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.raw.__reduce_ex__(protocol)  # a file holds numbers, and is read on the processor

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        kwargs = kwargs or {}
        if func is aten._to_copy.default:
            return _to_copy(*args, **kwargs)
        if func is aten.copy_.default:
            _count_copy(to=args[0], source=args[1])
            target, source = (x.raw if isinstance(x, CardTensor) else x for x in args[:2])
            target.copy_(source)
            return args[0]

        if func is aten._local_scalar_dense.default:
            _count_read()

        def unwrap(tensor: torch.Tensor) -> torch.Tensor:
            if isinstance(tensor, CardTensor):
                return tensor.raw
            if tensor.dim():
                raise RuntimeError(f"{func}: a tensor on the card meets one on the {tensor.device}")
            return tensor

        generator = kwargs.get("generator")
        if generator is not None and generator.initial_seed() not in CardGenerator.seeds:
            raise RuntimeError(f"{func}: a generator of the processor draws on the card")
        on_processor = {"device": torch.device("cpu")} if "device" in kwargs else {}
        out = func(
            *tree_map_only(torch.Tensor, unwrap, args), **tree_map_only(torch.Tensor, unwrap, kwargs) | on_processor
        )
        wrapped = tree_map_only(torch.Tensor, lambda x: CardTensor(x.resolve_conj()), out)
        return return_and_correct_aliasing(func, args, kwargs, wrapped) if _mutates(func) else wrapped


class CardGenerator(torch.Generator):
    """A source of random numbers of the card. Torch hands on another object, so that the seed tells whose it is."""

    seeds: ClassVar[set[int]] = set()

    def __new__(cls, device: Any = "cpu") -> torch.Generator:  # type: ignore[misc]
        kind = cls if torch.device(device).type == NAME else GENERATOR
        return GENERATOR.__new__(kind, device="cpu")  # type: ignore[call-arg]

    def manual_seed(self, seed: int) -> torch.Generator:
        self.seeds.add(super().manual_seed(seed).initial_seed())
        return self


class Backend(_DummyBackendModule):
    """The module `torch.card`."""

    @staticmethod
    def get_amp_supported_dtype() -> list[torch.dtype]:
        """Return the number formats of autocast."""
        return [torch.bfloat16, torch.float16]


def _mutates(func: Any) -> bool:
    return func._schema.is_mutable


def _to_copy(x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
    device = torch.device(kwargs.pop("device", None) or x.device)
    kwargs.pop("non_blocking", None)
    raw = x.raw if isinstance(x, CardTensor) else x
    copied = aten._to_copy.default(raw, **kwargs)
    copied = CardTensor(copied) if device.type == NAME else copied
    _count_copy(to=copied, source=x)
    return copied


def _count_copy(to: torch.Tensor, source: torch.Tensor) -> None:
    """Count a copy that crosses from the processor to the card, or back."""
    if isinstance(to, CardTensor) != isinstance(source, CardTensor):
        CardTensor.traffic["to" if isinstance(to, CardTensor) else "back"] += 1


def _count_read() -> None:
    """Count a number that is read back; those that L-BFGS reads apart."""
    frame = sys._getframe(2)
    while frame.f_back and frame.f_code.co_filename in (__file__, torch.overrides.__file__, torch._tensor.__file__):
        frame = frame.f_back
    CardTensor.traffic["lbfgs" if frame.f_code.co_filename.endswith("lbfgs.py") else "read"] += 1


class SparseToCard(TorchFunctionMode):
    """Takes sparse matrices to the card, which a backend in Python has no way to make."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.to and args[0].layout is torch.sparse_csr and args[1] == card():
            return CardTensor(args[0].to(*args[2:]))
        return func(*args, **(kwargs or {}))


@cache
def card() -> torch.device:
    """The device, which is registered at the first call."""
    _setup_privateuseone_for_python_backend(NAME, Backend())
    library = torch.library.Library("aten", "IMPL")
    keep.append(library)

    def empty(size: Any, dtype: Any = None, layout: Any = None, device: Any = None, pin_memory: Any = None,
              memory_format: Any = None) -> torch.Tensor:  # fmt: skip
        return CardTensor(torch.empty(size, dtype=dtype, memory_format=memory_format or torch.contiguous_format))

    def empty_strided(size: Any, stride: Any, dtype: Any = None, layout: Any = None, device: Any = None,
                      pin_memory: Any = None) -> torch.Tensor:  # fmt: skip
        return CardTensor(torch.empty_strided(size, stride, dtype=dtype))

    library.impl("empty.memory_format", empty, "PrivateUse1")
    library.impl("empty_strided", empty_strided, "PrivateUse1")
    library.impl("_to_copy", _to_copy, "PrivateUse1")
    return torch.device(NAME, 0)


keep: list[torch.library.Library] = []


def main(*commands: list[str]) -> int:
    """Run programs on the card, each given by its module's name and its words; return how many failed.

    The last line that is printed is the traffic of the pretended card, as JSON.
    """
    import importlib

    import model_loader
    from scripts.benchmarks import measure

    device = torch.device(REAL) if REAL else card()
    model_loader.resolve_device = lambda *_: device
    if not REAL:
        torch.Generator = CardGenerator  # type: ignore[misc]
        measure.CONVOLUTIONS[NAME], measure.PRODUCTS[NAME] = ((8, 8),), (8,)
        # A new process would not know the device.
        multiprocessing.get_context = lambda *_: SimpleNamespace(Pool=ThreadPool)  # type: ignore[assignment]
    with nullcontext() if REAL else SparseToCard():
        failed = sum(importlib.import_module(program).main(words) != 0 for program, *words in commands)
    sys.stdout.write(json.dumps(CardTensor.traffic) + "\n")
    return failed


if __name__ == "__main__":
    from tests import card as module  # not __main__: there is to be one of each class

    sys.exit(module.main(*json.loads(sys.argv[1])))
