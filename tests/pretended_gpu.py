"""A GPU that is pretended on a machine without one: tensors that say cuda:0 and hold CPU tensors.

Refuses what CUDA refuses, draws its own random numbers, counts waits, checks that memory from which it copies without a
wait is not written, saves tensors with their device. Not pretended: cuDNN, autocast, rounding, speed, several GPUs.
"""
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

INDEXING = ("index", "index_put_", "_index_put_impl_")      # of a GPU tensor, with positions on either device
READING = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "repeat_interleave")


def mapped(function, values):
    """The arguments of a call with each leaf replaced; several times faster than PyTorch's tree_map."""
    if isinstance(values, (list, tuple)):
        return type(values)([mapped(function, value) for value in values])
    if isinstance(values, dict):
        return {name: mapped(function, value) for name, value in values.items()}
    return function(values)


def tensors_in(values):
    found = []
    mapped(found.append, values)
    return [leaf for leaf in found if isinstance(leaf, torch.Tensor)]


class OnGPU(torch.Tensor):
    """A tensor on the GPU. PyTorch takes it for one on 'meta', the device of tensors without values."""
    __torch_function__ = torch._C._disabled_torch_function_impl
    device, is_cuda, is_meta = torch.device("cuda:0"), True, False

    @staticmethod
    def __new__(cls, held):
        return torch.Tensor._make_wrapper_subclass(cls, held.shape, strides=held.stride(), dtype=held.dtype,
                                                   storage_offset=held.storage_offset(), device="meta")

    def __init__(self, held):
        self.held = held

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return GPU.current.__torch_dispatch__(function, types, args, kwargs)

    def tolist(self):
        return self.cpu().tolist()

    def __reduce_ex__(self, protocol):      # for torch.save
        GPU.current.saved.append(self.held.untyped_storage().data_ptr())
        return self.held.__reduce_ex__(protocol)


class CudaIsMeta(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        def renamed(leaf):
            return "meta" if isinstance(leaf, (str, torch.device)) and str(leaf).startswith("cuda") else leaf
        if function is not torch.device:
            args, kwargs = mapped(renamed, (args, kwargs or {}))
        return function(*args, **kwargs or {})


class GPU(TorchDispatchMode):
    """Computes on the CPU what is asked of the GPU. waits: of the processor, by operation; touched: if it was used."""

    def __init__(self):
        super().__init__()
        self.generator, self.waits, self.touched = torch.Generator(), Counter(), False
        self.thread, GPU.current = threading.get_ident(), self
        self.pinned, self.under_way, self.saved = {}, [], []

    def wait(self, name="end"):
        self.waits[name] += 1
        for source, copied in self.under_way:
            assert torch.equal(source, copied), "memory was written while the GPU may still have copied from it"
        self.under_way.clear()

    def copy_in(self, source, non_blocking):
        """A copy from the CPU. Only pinned memory spares the training thread the wait; another thread may wait."""
        no_wait = non_blocking and source.untyped_storage().data_ptr() in self.pinned
        if threading.get_ident() == self.thread and not no_wait:
            self.wait("copy to the GPU")
        if non_blocking:
            self.under_way.append((source, source.clone()))

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name, place = function._schema.name.removeprefix("aten::"), kwargs.get("device")
        tensors = tensors_in((args, kwargs))
        on_gpu = [tensor for tensor in tensors if isinstance(tensor, OnGPU)]
        elsewhere = [tensor for tensor in tensors if not isinstance(tensor, OnGPU)]
        indices = tensors_in(args[1]) if name in INDEXING else []
        to_gpu = torch.device(place).type == "meta" if place is not None else bool(on_gpu)
        if name == "copy_":
            to_gpu = isinstance(args[0], OnGPU)
        elif on_gpu and name != "_to_copy":      # a single number may be elsewhere, unless it is written
            for tensor in elsewhere:
                if isinstance(args[0], OnGPU) and any(tensor is index for index in indices):
                    self.copy_in(tensor, non_blocking=False)
                elif tensor.dim() or name.endswith("_") and tensor is args[0]:
                    raise RuntimeError(f"Expected all tensors to be on the same device, but {name} got cuda:0 and cpu")
        if to_gpu and name in ("_to_copy", "copy_") and elsewhere:
            self.copy_in(elsewhere[0], kwargs.get("non_blocking", name == "copy_" and args[2:] == (True,)))
        if on_gpu and (not to_gpu or name in READING or torch.bool in [index.dtype for index in indices]):
            self.wait(name)
        self.touched = self.touched or to_gpu or bool(on_gpu)

        def held(leaf):
            return leaf.held if isinstance(leaf, OnGPU) else "cpu" if isinstance(leaf, torch.device) else leaf
        pin = kwargs.get("pin_memory")
        args, kwargs = mapped(held, (args, {**kwargs, "pin_memory": False} if pin else kwargs))
        with ExitStack() as own_numbers:
            if to_gpu and torch.Tag.nondeterministic_seeded in function.tags:
                own_numbers.callback(torch.set_rng_state, torch.get_rng_state())
                torch.set_rng_state(self.generator.get_state())
                own_numbers.callback(lambda: self.generator.set_state(torch.get_rng_state()))
            result = function(*args, **kwargs)
        if pin:
            self.pinned[result.untyped_storage().data_ptr()] = result
        given = {id(tensor.held): tensor for tensor in on_gpu}      # what is written in place stays the same object

        def wrapped(leaf):
            return given[id(leaf)] if id(leaf) in given else OnGPU(leaf) if isinstance(leaf, torch.Tensor) else leaf
        return mapped(wrapped, result) if to_gpu else result


@contextmanager
def pretended_gpu(free=80e9, capability=(9, 0)):
    """free: bytes of memory that the GPU says are free; capability: its generation, (8, 0) for Ampere."""
    if torch.cuda.is_available():
        pytest.skip("the real GPU cannot be hidden from a test in the same process")
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 13):
        pytest.skip("it replaces inner functions of PyTorch and was tried with 2.13")
    gpu, where = GPU(), torch.serialization.location_tag

    def random_state():
        gpu.touched = True
        return gpu.generator.get_state()

    with ExitStack() as stack:
        for module, name, value in (
                (torch.cuda, "is_available", lambda: True), (torch.cuda, "_initialized", True),
                (torch.cuda, "default_generators", (gpu.generator,)), (torch.cuda, "get_rng_state", random_state),
                (torch.cuda.random, "device_count", lambda: 1), (torch.cuda, "get_device_name", lambda _: "pretended"),
                (torch.cuda, "mem_get_info", lambda _: (free, free)),
                (torch.cuda, "get_device_capability", lambda _: capability),
                (torch._C, "_cuda_setDevice", lambda _: None), (torch._C, "_cuda_getDevice", lambda: 0),
                (torch.__future__, "get_overwrite_module_params_on_conversion", lambda: True),
                (torch.serialization, "location_tag",
                 lambda storage: "cuda:0" if storage.data_ptr() in gpu.saved else where(storage))):
            stack.enter_context(patch.object(module, name, value, create=True))
        stack.enter_context(patch("dataset.ThreadPoolExecutor", lambda number: ThreadPoolExecutor(
            number, initializer=lambda: (CudaIsMeta().__enter__(), gpu.__enter__()))))      # modes hold for one thread
        stack.callback(gpu.wait)
        stack.enter_context(CudaIsMeta())
        yield stack.enter_context(gpu)
