"""dkv.cuda: with DKV_CUDA_LIBRARY naming the emulation's libdkv_cuda all of it, else what it says without a GPU."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from fakes import FakeEngine

import dkv
import dkv.hf
from dkv.hf.place import DevicePlace, HostPlace, place_of

emulated = pytest.mark.skipif(not dkv.cuda.is_emulated(), reason="this libdkv_cuda is not the emulation's")


def in_a_new_process(script: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(ROOT / "protocol/python"), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


# ---------------------------------------------------------------- without a GPU


def test_without_libdkv_cuda_the_package_works_on_the_cpu_and_says_why():
    script = """
import dkv
print(dkv.cuda.available(), dkv.cuda.is_emulated(), dkv.cuda.why_not())
dkv.Engine(dkv.Geometry(1, 1, 1, 8, "f32"), endpoint="ipc:///tmp/dkv-nobody.sock").close()
dkv.Arena(4096)
try:
    dkv.cuda.DeviceArena(4096)
except dkv.DkvError as error:
    print(error.name)
"""

    words = in_a_new_process(script, DKV_CUDA_LIBRARY="/nowhere/libdkv_cuda.so").splitlines()

    assert words[0].startswith("False False no GPU: no libdkv_cuda (/nowhere/libdkv_cuda.so: ")
    assert words[0].endswith("build dkv where a CUDA toolkit is, or set DKV_CUDA_LIBRARY")
    assert words[1] == "not_found"


@emulated
@pytest.mark.parametrize("driver, code", [("none", 35), ("stub", 34), ("no_device", 100)])
def test_without_a_driver_it_says_no_gpu_and_cudas_code(driver, code):
    words = in_a_new_process("import dkv; print(dkv.cuda.why_not())", CUDAEMU_DRIVER=driver)

    assert words.startswith("no GPU: ")
    assert words.endswith(f"code {code})")
    assert "\n" not in words


def test_a_model_on_the_cpu_keeps_its_rows_there():
    assert isinstance(place_of(None, torch.device("cpu")), HostPlace)
    assert isinstance(place_of("cpu", torch.device("cpu")), HostPlace)


def test_devices_that_are_neither_cpu_nor_gpu_are_refused_by_name():
    with pytest.raises(dkv.DkvError, match="K and V are on meta: only CPUs and CUDA GPUs"):
        place_of(None, torch.device("meta"))


# ---------------------------------------------------------------- on the emulation


@emulated
def test_gpus_are_found_by_uuid_ordinal_and_torchs_names():
    gpu = dkv.cuda.devices()[0]

    for name in (gpu.uuid, gpu.ordinal, "cuda", "cuda:0", torch.device("cuda"), torch.device("cuda", 0)):
        assert dkv.cuda.uuid_of(name) == gpu.uuid
    with pytest.raises(dkv.DkvError, match="device 'cuda:9' is not one of this process's: GPU-") as caught:
        dkv.cuda.uuid_of("cuda:9")
    assert caught.value.status == dkv.Status.NOT_FOUND


@emulated
@pytest.mark.parametrize("kind", [dkv.cuda.ArenaKind.MALLOC, dkv.cuda.ArenaKind.VMM])
def test_a_device_arena_is_zeroed_and_a_tensor_is_its_bytes(kind):
    arena = dkv.cuda.DeviceArena(4096, kind=kind)
    tensor = arena.tensor(torch.float32)

    assert tensor.shape == (1024,) and not tensor.any()
    tensor[5] = 2.5

    assert dkv.cuda.copy_to_host(arena.base + 20, 4) == torch.tensor([2.5]).numpy().tobytes()
    dkv.cuda.copy_to_device(arena.base + 20, torch.tensor([7.0]).numpy().tobytes())
    assert tensor[5] == 7


@emulated
def test_the_cuda_array_interface_says_where_and_how_much():
    arena = dkv.cuda.DeviceArena(100)

    assert arena.__cuda_array_interface__ == {
        "shape": (100,),
        "typestr": "|u1",
        "data": (arena.base, False),
        "version": 3,
        "strides": None,
        "stream": None,
    }


@emulated
def test_dlpack_shares_the_bytes_and_keeps_them_alive():
    arena = dkv.cuda.DeviceArena(64)
    tensor = torch.from_dlpack(arena)
    assert tensor.dtype == torch.uint8 and tensor.data_ptr() == arena.base

    del arena
    gc.collect()
    tensor.fill_(3)

    assert tensor.sum() == 3 * 64
    dkv.cuda.DeviceArena(64).__dlpack__()  # A capsule that nobody takes is nothing to worry about.


@emulated
def test_a_released_arena_holds_nothing():
    arena = dkv.cuda.DeviceArena(1 << 20)
    assert arena.allocated_bytes == 1 << 20

    arena.release(0, 4096)
    assert arena.allocated_bytes == 1 << 20
    arena.release(0, arena.bytes)

    assert arena.allocated_bytes == 0


@emulated
def test_part_of_somebodys_memory_is_adopted():
    lender = dkv.cuda.DeviceArena(1 << 20)
    inside = SimpleNamespace(
        __cuda_array_interface__={"shape": (2, 64), "typestr": "<f4", "data": (lender.base + 256, False), "version": 3}
    )

    arena = dkv.cuda.DeviceArena.adopt(inside)

    assert (arena.base, arena.bytes, arena.allocated_bytes) == (lender.base + 256, 512, 0)
    assert arena.offset_of(SimpleNamespace(data_ptr=lambda: lender.base + 300)) == 44
    with pytest.raises(dkv.DkvError, match="is not inside this arena"):
        arena.offset_of(SimpleNamespace(data_ptr=lambda: lender.base))


@emulated
def test_what_is_no_device_memory_is_refused():
    with pytest.raises(dkv.DkvError, match="are not device memory") as caught:
        dkv.cuda.DeviceArena.adopt(torch.zeros(4))
    assert caught.value.status == dkv.Status.INVALID_ARGUMENT
    with pytest.raises(dkv.DkvError, match="list has no __cuda_array_interface__"):
        dkv.cuda.DeviceArena.adopt([1, 2])
    with pytest.raises(dkv.DkvError, match=r"only contiguous arrays can be lent: this one has strides \(8,\)"):
        strided = {"shape": (2,), "typestr": "<f4", "data": (0, False), "version": 3, "strides": (8,)}
        dkv.cuda.DeviceArena.adopt(SimpleNamespace(__cuda_array_interface__=strided))


@emulated
def test_strides_that_say_contiguous_are_no_obstacle():
    lender = dkv.cuda.DeviceArena(1 << 20)
    dense = {"shape": (3, 4), "typestr": "<f4", "data": (lender.base, True), "version": 3, "strides": (16, 4)}

    arena = dkv.cuda.DeviceArena.adopt(SimpleNamespace(__cuda_array_interface__=dense))

    assert (arena.bytes, arena.device) == (48, lender.device)


@emulated
def test_dlpack_neither_copies_nor_changes_devices():
    arena = dkv.cuda.DeviceArena(64)

    with pytest.raises(BufferError, match="never a copy"):
        arena.__dlpack__(copy=True)
    with pytest.raises(BufferError, match=r"is on device \(1, 0\), not on \(2, 7\)"):
        arena.__dlpack__(dl_device=(2, 7))


@emulated
def test_only_the_device_that_is_used_gets_a_context():
    script = """
import ctypes, dkv
driver = ctypes.CDLL(dkv._abi.cuda_library_path())
def function(name, version, *types):
    found, flags = ctypes.c_void_p(), ctypes.c_ulonglong(0)
    assert driver.cudaGetDriverEntryPointByVersion(name.encode(), ctypes.byref(found), version, flags, None) == 0
    return ctypes.CFUNCTYPE(ctypes.c_int, *types)(found.value)
state = function("cuDevicePrimaryCtxGetState", 7000, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
def active():
    flags, on = ctypes.c_uint(), ctypes.c_int()
    return [state(gpu.ordinal, ctypes.byref(flags), ctypes.byref(on)) or on.value for gpu in dkv.cuda.devices()]
print(active())
arena = dkv.cuda.DeviceArena(4096, 2)
lent = dkv.cuda.DeviceArena.adopt(arena)
dkv.cuda.copy_to_device(arena.base, b"rows")
print(dkv.cuda.copy_to_host(lent.base, 4), dkv.cuda.device_of(lent.base).ordinal, lent.device == arena.device, active())
del lent, arena
print(active())
"""

    lines = in_a_new_process(script, CUDAEMU_DEVICES="3").splitlines()

    assert lines == ["[0, 0, 0]", "b'rows' 2 True [0, 0, 1]", "[0, 0, 1]"]


@emulated
def test_a_forked_child_is_told_to_be_spawned():
    script = """
import os, dkv
dkv.cuda.devices()
if os.fork() == 0:
    print(dkv.cuda.why_not(), flush=True)
    os._exit(0)
os.wait()
"""

    assert "CUDA does not survive fork(): start processes that use it by spawn or exec" in in_a_new_process(script)


@emulated
def test_more_than_the_device_has_is_refused_with_what_is_left():
    with pytest.raises(dkv.DkvError, match=r"the device has no \d+ bytes; \d+ of \d+ are left") as caught:
        dkv.cuda.DeviceArena(1 << 50)
    assert caught.value.status == dkv.Status.LIMIT_EXCEEDED


@emulated
def test_the_adapters_rows_go_where_they_are_asked_to(tiny_llama, prompt, monkeypatch):
    monkeypatch.delenv("DKV_DEVICE", raising=False)
    assert isinstance(place_of("cuda", torch.device("cpu")), DevicePlace)
    monkeypatch.setenv("DKV_DEVICE", "cuda")
    cache = dkv.hf.Cache(tiny_llama, engine=FakeEngine(), prompt_tokens=100)

    with torch.no_grad():
        tiny_llama(prompt(20), past_key_values=cache)

    assert {type(arena) for arena in cache._storage.arenas} == {dkv.cuda.DeviceArena}
    assert len(cache._storage.arenas) == 4  # A layer's memory goes without the others'.
