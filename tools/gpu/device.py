"""The GPU that the driver has, asked without any tool; and its clocks, by nvidia-smi, which is not in every container."""
import ctypes
import os
import shutil
import statistics
import subprocess
import tempfile
import time
import uuid

NAME_BYTES = 256
MAJOR, MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
MEANS_NO_GPU = (34, 35, 100)  # A stub library, an insufficient driver, no device.
STATE = ("driver_version", "pstate", "clocks.max.sm", "clocks.max.mem", "power.limit", "temperature.gpu",
         "utilization.gpu", "memory.used", "persistence_mode", "compute_mode", "ecc.mode.current", "mig.mode.current")
SAMPLED = ("clocks.sm", "clocks.mem", "temperature.gpu", "power.draw")
SAMPLE_MS = 100
FIRST_SAMPLE_S = 10


class NoGpu(Exception):
    pass


class BrokenDriver(Exception):
    pass


def load():
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError:
        raise NoGpu("there is no NVIDIA driver here (libcuda.so.1 is not to be loaded)") from None


def find():
    """{name, uuid, compute_capability, driver_cuda, count} of the first GPU."""
    driver = load()

    def ask(call, *arguments):
        if status := getattr(driver, call)(*arguments):
            text = ctypes.c_char_p()
            driver.cuGetErrorString(status, ctypes.byref(text))
            kind = NoGpu if status in MEANS_NO_GPU else BrokenDriver
            raise kind(f"{call}: {status}, {(text.value or b'?').decode()}")

    ask("cuInit", 0)
    count, version, first = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    ask("cuDeviceGetCount", ctypes.byref(count))
    if count.value == 0:
        raise NoGpu("the driver has no device (CUDA_VISIBLE_DEVICES?)")
    ask("cuDriverGetVersion", ctypes.byref(version))
    ask("cuDeviceGet", ctypes.byref(first), 0)
    name = ctypes.create_string_buffer(NAME_BYTES)
    ask("cuDeviceGetName", name, NAME_BYTES, first)
    identity = ctypes.create_string_buffer(16)
    ask("cuDeviceGetUuid", identity, first)
    capability = []
    for attribute in (MAJOR, MINOR):
        value = ctypes.c_int()
        ask("cuDeviceGetAttribute", ctypes.byref(value), attribute, first)
        capability.append(value.value)
    return {"name": name.value.decode(), "uuid": f"GPU-{uuid.UUID(bytes=identity.raw)}",
            "compute_capability": "{}.{}".format(*capability), "count": count.value,
            "driver_cuda": f"{version.value // 1000}.{version.value % 1000 // 10}"}


def smi(gpu, fields, *more):
    if shutil.which("nvidia-smi") is None:
        raise OSError("it is not on PATH")
    return ["nvidia-smi", f"--id={gpu}", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits", *more]


def state(gpu):
    """What nvidia-smi says of the GPU before anything is run, or {"why": …}."""
    try:
        done = subprocess.run(smi(gpu, STATE), capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"why": f"nvidia-smi does not run: {error}"}
    values = [value.strip() for value in done.stdout.strip().split(",")]
    if done.returncode != 0 or len(values) != len(STATE):
        return {"why": f"nvidia-smi: {(done.stdout + done.stderr).strip()}"}
    return dict(zip(STATE, values))


class Sampler:
    """Clocks, temperature and power while something runs: {field: [least, median, most]}, or {"why": …}."""

    def __init__(self, gpu):
        self.gpu, self.seen = gpu, {}

    def __enter__(self):
        self._file = tempfile.TemporaryFile()
        try:  # Line by line: what is in a buffer when it is ended would be lost.
            command = ["stdbuf", "-oL", *smi(self.gpu, SAMPLED, "-lms", str(SAMPLE_MS))]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self._file,
                                             stderr=subprocess.STDOUT)
        except OSError as error:
            self._process, self.seen = None, {"why": f"nvidia-smi does not run: {error}"}
        return self

    def __exit__(self, *_):
        if self._process is not None:
            until = time.monotonic() + FIRST_SAMPLE_S  # Of what was over before nvidia-smi had begun.
            while not os.fstat(self._file.fileno()).st_size and self._process.poll() is None and time.monotonic() < until:
                time.sleep(SAMPLE_MS / 1e3)
            self._process.terminate()
            self._process.wait()
            self._file.seek(0)
            self.seen = summary(self._file.read().decode(errors="replace"))
        self._file.close()


def summary(text):
    rows = [line.split(",") for line in text.splitlines()]
    rows = [row for row in rows if len(row) == len(SAMPLED)]
    seen = {"samples": len(rows)}
    for field, column in zip(SAMPLED, zip(*rows)):
        numbers = [float(value) for value in column if value.strip().replace(".", "", 1).isdigit()]
        if numbers:
            seen[field] = [min(numbers), statistics.median(numbers), max(numbers)]
    return seen if rows else {"why": f"nvidia-smi: {text.strip() or 'said nothing'}"}
