"""The GPU that the driver has, asked without any tool: nvidia-smi is not in every container."""
import ctypes

NAME_BYTES = 256
MAJOR, MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*


class NoGpu(Exception):
    pass


def load():
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError:
        raise NoGpu("there is no NVIDIA driver here (libcuda.so.1 is not to be loaded)") from None


def find():
    """{name, compute_capability, driver_cuda, count} of the first GPU."""
    driver = load()

    def ask(call, *arguments):
        if status := getattr(driver, call)(*arguments):
            text = ctypes.c_char_p()
            driver.cuGetErrorString(status, ctypes.byref(text))
            raise NoGpu(f"{call}: {status}, {(text.value or b'?').decode()}")

    ask("cuInit", 0)
    count, version, first = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    ask("cuDeviceGetCount", ctypes.byref(count))
    if count.value == 0:
        raise NoGpu("the driver has no device (CUDA_VISIBLE_DEVICES?)")
    ask("cuDriverGetVersion", ctypes.byref(version))
    ask("cuDeviceGet", ctypes.byref(first), 0)
    name = ctypes.create_string_buffer(NAME_BYTES)
    ask("cuDeviceGetName", name, NAME_BYTES, first)
    capability = []
    for attribute in (MAJOR, MINOR):
        value = ctypes.c_int()
        ask("cuDeviceGetAttribute", ctypes.byref(value), attribute, first)
        capability.append(value.value)
    return {"name": name.value.decode(), "compute_capability": "{}.{}".format(*capability), "count": count.value,
            "driver_cuda": f"{version.value // 1000}.{version.value % 1000 // 10}"}
