"""A pretend GPU: torch sees one CUDA device, values stay on the CPU, and CUDA's rules hold.

In the block every operation on a tensor of "cuda" is looked at before it runs on the CPU:

- what CUDA would refuse raises CudaError: tensors of two devices, CPU generators, half states with
  float weights in one kernel;
- what makes the host wait for the device is noted in `waits` with the line of this repository that
  asked for it: .item(), .cpu(), boolean indexing, and copies from ordinary memory to the device
  unless they are non_blocking.

A tensor is a wrapper around a CPU tensor. To Python it says cuda:0; C++ takes it for one of
PrivateUse1, a backend that torch lets Python register, for good: use a process of its own. CUDA's
kernels, memory and speed, and several GPUs, are not seen.
"""

import contextlib
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = str(Path(__file__).parent.parent)
BACKEND = "pretend"
GPU = torch.device("cuda", 0)
POSSIBLE = hasattr(backend_registration, "_setup_privateuseone_for_python_backend")

WAITING = {
    *("_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_dim"),
    *("unique_consecutive", "bincount", "is_nonzero"),
}
COPYING = {"_to_copy", "copy_"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
FILLING = {"fill", "fill_", "masked_fill", "masked_fill_", "lerp", "lerp_"}
ONE_DTYPE = {
    *("mm", "addmm", "bmm", "baddbmm", "mv", "dot", "convolution"),
    *("native_group_norm", "native_layer_norm", "native_batch_norm"),
}


class CudaError(RuntimeError):
    """What CUDA would have refused."""


class OnGpu(Tensor):
    """A tensor on the pretend GPU; `held` has its values."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls: type["OnGpu"], held: Tensor) -> "OnGpu":
        made = Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=torch.device(BACKEND, 0),
        )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert PretendGpu.current, "a tensor outlived its pretend GPU"
        return PretendGpu.current.run(func, args, kwargs or {})  # in another thread

    device = property(lambda self: GPU)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]

    def tolist(self) -> Any:
        return self.cpu().tolist()

    @property
    def data(self) -> Tensor:  # type: ignore[override]
        return self.detach()

    @data.setter
    def data(self, value: "OnGpu") -> None:
        torch._C.TensorBase.data.__set__(self, value)  # type: ignore[attr-defined]
        self.held = value.held


def _is_gpu(device: Any) -> bool:
    return device is not None and torch.device(device).type in ("cuda", BACKEND)


def _renamed(device: Any) -> Any:
    named = isinstance(device, torch.device) or (isinstance(device, str) and device[:4] == "cuda")
    return torch.device(BACKEND, 0) if named and _is_gpu(device) else device


def _indices(index: Any) -> Any:
    """As torch does it: lists of indices are copied to the GPU."""
    if isinstance(index, tuple):
        return tuple(map(_indices, index))
    return torch.tensor(index).to(torch.device(BACKEND, 0)) if isinstance(index, list) else index


def _leaves(tree: Any) -> list[Any]:
    """Of lists, tuples and dictionaries in one another; torch's own takes many times as long."""
    if isinstance(tree, dict):
        return _leaves(tuple(tree.values()))
    if isinstance(tree, (tuple, list)):
        return [leaf for part in tree for leaf in _leaves(part)]
    return [tree]


def _mapped(change: Callable[[Any], Any], tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _mapped(change, part) for key, part in tree.items()}
    if isinstance(tree, (tuple, list)):
        return type(tree)([_mapped(change, part) for part in tree])
    return change(tree)


def _held(x: Any) -> Any:
    return x.held if isinstance(x, OnGpu) else x


def _cpu_tensors(tree: Any) -> list[Tensor]:
    return [x for x in _leaves(tree) if isinstance(x, Tensor) and x.device.type == "cpu"]


class _Names(TorchFunctionMode):
    """Tells C++ the backend's name in place of "cuda", which would ask for a driver."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.device:
            return func(*args, **(kwargs or {}))
        kwargs = {key: _renamed(value) for key, value in (kwargs or {}).items()}
        if func in (torch.tensor, torch.as_tensor) and _is_gpu(kwargs.get("device")):
            return func(*args, **{**kwargs, "device": None}).to(kwargs["device"])
        if func in (Tensor.__getitem__, Tensor.__setitem__) and isinstance(args[0], OnGpu):
            args = args[0], _indices(args[1]), *args[2:]
        return func(*map(_renamed, args), **kwargs)


class PretendGpu(TorchDispatchMode):
    """with PretendGpu() as gpu: … gpu.waits: the lines of this repository that waited."""

    current: "PretendGpu | None" = None

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self._undo = contextlib.ExitStack()

    def __enter__(self) -> "PretendGpu":
        if torch._C._get_privateuse1_backend_name() != BACKEND:
            backend_registration._setup_privateuseone_for_python_backend(BACKEND)
        PretendGpu.current = self
        for name, answer in self._answers():
            self._undo.enter_context(mock.patch.object(torch.cuda, name, answer))
        self._undo.enter_context(mock.patch.object(Tensor, "pin_memory", lambda self, *_: self))
        swap = torch.__future__.get_swap_module_params_on_conversion()
        torch.__future__.set_swap_module_params_on_conversion(True)  # Module.to keeps parameters
        self._undo.callback(torch.__future__.set_swap_module_params_on_conversion, swap)
        self._undo.enter_context(torch.autograd.set_multithreading_enabled(False))
        self._undo.enter_context(_Names())
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._undo.close()
        PretendGpu.current = None

    def _answers(self) -> Iterator[tuple[str, Any]]:
        about = types.SimpleNamespace(total_memory=2**36, major=8, minor=0, name="pretend")
        answers = {
            **dict.fromkeys(("is_available", "is_initialized", "is_bf16_supported"), True),
            **dict.fromkeys(("current_device", "_exchange_device"), 0),
            **dict.fromkeys(("max_memory_allocated", "memory_allocated"), 2**30),
            **dict.fromkeys(("set_device", "empty_cache", "reset_peak_memory_stats")),
            **dict.fromkeys(("manual_seed_all", "_lazy_init", "init")),
            "device_count": 1,
            "get_device_name": about.name,
            "get_device_capability": (8, 0),
            "get_device_properties": about,
            "mem_get_info": (2**36, 2**36),
        }
        for name, answer in answers.items():
            yield name, lambda *args, _answer=answer, **kwargs: _answer
        yield "synchronize", lambda *args: self._wait("synchronize")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.run(func, args, kwargs or {})

    def run(self, func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Look at an operation, run it on the CPU, and put what it gives where it belongs."""
        leaves = _leaves((args, kwargs))
        on_gpu = [x for x in leaves if isinstance(x, OnGpu)]
        asked = kwargs.get("device")
        if not on_gpu and not _is_gpu(asked):
            return func(*args, **kwargs)
        name = func._schema.name.split("::")[-1]
        on_cpu = _cpu_tensors(leaves)
        if any(isinstance(x, torch.Generator) and x.device.type == "cpu" for x in leaves):
            raise CudaError(f"{name}: a CPU generator does not draw on the GPU")
        if on_gpu and on_cpu and name not in COPYING:
            self._check_devices(func, name, args, on_cpu)
        dtypes = {x.dtype for x in on_gpu if x.is_floating_point()}
        if name in ONE_DTYPE and len(dtypes) > 1:
            raise CudaError(f"{name}: one dtype is wanted, not {sorted(map(str, dtypes))}")
        self._note_waits(name, args, kwargs)

        plain = _mapped(_held, kwargs)
        if _is_gpu(asked):
            plain["device"] = torch.device("cpu")
        out = func(*_mapped(_held, args), **plain)
        if asked is not None and not _is_gpu(asked):
            return out
        known = {id(x.held): x for x in on_gpu}  # what is changed in place stays what it was

        def wrapped(x: Any) -> Any:
            return known.get(id(x)) if id(x) in known else OnGpu(x) if isinstance(x, Tensor) else x

        return _mapped(wrapped, out)

    def _check_devices(self, func: Any, name: str, args: tuple, on_cpu: list[Tensor]) -> None:
        """Raise where tensors of both devices meet, but for numbers and for indices."""
        if name in INDEXING and isinstance(args[0], OnGpu):
            on_cpu = _cpu_tensors(args[2:])
            self._wait("a CPU index")
        number = all(x.dim() == 0 for x in on_cpu)
        takes_numbers = torch.Tag.pointwise in func.tags or name.startswith("_foreach")
        if not (number and (takes_numbers or name in FILLING or name in INDEXING)):
            shapes = [tuple(x.shape) for x in on_cpu]
            raise CudaError(f"{name}: tensors on cuda:0 and on the CPU ({shapes})")

    def _note_waits(self, name: str, args: tuple, kwargs: dict[str, Any]) -> None:
        if name in WAITING or (name == "repeat_interleave" and not kwargs.get("output_size")):
            self._wait(name)
        elif name == "_to_copy":
            here, asked = isinstance(args[0], OnGpu), kwargs.get("device")
            if here and asked is not None and not _is_gpu(asked):
                self._wait("to the CPU")
            elif not here and not kwargs.get("non_blocking"):
                self._wait("to the GPU")
        elif name == "copy_":
            into, source = (isinstance(x, OnGpu) for x in args[:2])
            if source != into and not (into and (args[2:] or kwargs.get("non_blocking"))):
                self._wait("copy_ from or to the CPU")
        elif name in INDEXING:
            masks = [x for x in _leaves(args[1]) if getattr(x, "dtype", None) == torch.bool]
            filling = name != "index" and args[2].numel() == 1
            if masks and not filling:
                self._wait("a boolean index")

    def _wait(self, what: str) -> None:
        frame: Any = sys._getframe(1)
        while frame is not None:
            file = frame.f_code.co_filename
            if file.startswith(ROOT) and "site-packages" not in file and file != __file__:
                break
            frame = frame.f_back
        where = f"{file[len(ROOT) + 1 :]}:{frame.f_lineno}" if frame else "elsewhere"
        self.waits.append(f"{where}: {what}")
