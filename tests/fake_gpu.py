"""A GPU that is not there: shapes, types and devices of a computation, and what would make the host wait for it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn as nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

#: without a GPU, PyTorch cannot differentiate on a CUDA device, not even on a fake one
DEVICE = "cuda" if torch.cuda.is_available() else "meta"
READS = {"aten._local_scalar_dense", "aten.item", "aten.nonzero", "aten.equal", "aten.is_nonzero"}


class HostRead(AssertionError):  # noqa: N818  # what a test fails with
    """Something that a step on a GPU must not do."""


class Watch(TorchDispatchMode):
    """Refuses reads by the host, tensors on another device, float64, and sums in no fixed order."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func.overloadpacket)
        given = [t for t in tree_leaves((args, kwargs or {})) if isinstance(t, torch.Tensor)]
        if name in READS:
            raise HostRead(f"{name} waits for the device")
        if name in ("aten.cumsum", "aten.cumprod") and given[0].is_floating_point():
            raise HostRead(f"{name} of {given[0].dtype} adds up in no fixed order on a GPU")
        result = func(*args, **(kwargs or {}))
        for tensor in given + [t for t in tree_leaves(result) if isinstance(t, torch.Tensor)]:
            if tensor.device.type != DEVICE:
                raise HostRead(f"{name} with a tensor on {tensor.device}, {tuple(tensor.shape)}")
            if tensor.dtype in (torch.float64, torch.complex128):
                raise HostRead(f"{name} with {tensor.dtype}")
        return result


@contextlib.contextmanager
def fake_gpu(*modules: nn.Module | None) -> Iterator[None]:
    """Move modules to a fake GPU for good, and watch what is computed inside the context."""
    with FakeTensorMode(), pytest.MonkeyPatch.context() as patch:
        for module in modules:
            for part in module.modules() if module is not None else ():
                for name, parameter in part._parameters.items():
                    if parameter is not None:
                        part._parameters[name] = nn.Parameter(empty_like(parameter), parameter.requires_grad)
                for name, buffer in part._buffers.items():
                    if buffer is not None:
                        part._buffers[name] = empty_like(buffer)
        if DEVICE == "meta":  # which has no autocast
            patch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
        with Watch():
            yield


def empty_like(tensor: torch.Tensor) -> torch.Tensor:
    """A fake tensor of the same layout on the fake GPU; inside `fake_gpu` only."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=DEVICE)
