"""The words of dkv.h in Python: what goes into an engine or a session and what comes out."""

from __future__ import annotations

import dataclasses
import enum

from . import checks, parameters
from .errors import DkvError, Status


class Dtype(enum.IntEnum):
    F32 = 1
    F16 = 2
    BF16 = 3

    @property
    def itemsize(self) -> int:
        return 4 if self is Dtype.F32 else 2

    @classmethod
    def of(cls, dtype: object) -> "Dtype":
        """From a Dtype, "f32", or a dtype of torch or numpy, told by its name.

        Raises DkvError (UNSUPPORTED) for another one.
        """
        if isinstance(dtype, Dtype):
            return dtype
        found = _DTYPES.get(str(getattr(dtype, "name", dtype)).rpartition(".")[2].lower())
        if found is None:
            raise DkvError(Status.UNSUPPORTED, f"dtype is {dtype}, none of f32, f16, bf16")
        return found


_DTYPES = {
    "f32": Dtype.F32,
    "float32": Dtype.F32,
    "f16": Dtype.F16,
    "float16": Dtype.F16,
    "bf16": Dtype.BF16,
    "bfloat16": Dtype.BF16,
}


class EventKind(enum.IntEnum):
    NONE = 0  # Nothing (yet).
    RELEASE = 1  # The layer's full-length rows are not needed any more.
    TRIMMED = 2  # Its staged rows were cut.
    PACKED = 3  # It is in the destination.
    COMMITTED = 4  # Every layer is.
    FAILED = 5  # The session was abandoned; Session.failure says why.


class LayerForm(enum.IntEnum):
    FULL = 0  # The engine's own rows, never released.
    STAGED = 1  # Staged rows: the fallback of a layer that was released.
    PACKED = 2  # The destination.


class ArenaKind(enum.IntEnum):
    DEFAULT = 0
    MEMFD = 1
    POSIX_SHM = 2


@dataclasses.dataclass(frozen=True)
class Geometry:
    """The compressible layers of a model. `dtype` is that of K, V and Q, as Dtype.of takes it."""

    layers: int
    q_heads: int
    kv_heads: int
    head_dim: int
    dtype: object

    def __post_init__(self):
        for name in ("layers", "q_heads", "kv_heads", "head_dim"):
            object.__setattr__(self, name, checks.count(name, getattr(self, name)))


@dataclasses.dataclass(frozen=True)
class Surrogate:
    """What predicts from K and V alone how much later text attends to a token (`dkv calibrate --surrogate`)."""

    kv_heads: int
    head_dim: int
    weights: bytes  # Little-endian bf16 [layers][KV heads][features].
    frequencies: tuple[float, ...] = ()  # Of the keys' rotation; (): they have none.
    interleaved: bool = False  # Dims (2i, 2i + 1) turn together, else (i, i + len(frequencies)).

    def __post_init__(self):
        for name in ("kv_heads", "head_dim"):
            object.__setattr__(self, name, checks.count(f"surrogate.{name}", getattr(self, name)))
        checks.instance("surrogate.weights", self.weights, bytes)
        if not self.weights or len(self.weights) % self.layer_bytes:
            raise checks.refusal("surrogate.weights", len(self.weights), f"{self.layer_bytes} bytes of every layer")

    @property
    def layer_bytes(self) -> int:
        return 2 * self.kv_heads * (2 * self.kv_heads * self.head_dim + 2 * self.kv_heads + 1)

    @property
    def layers(self) -> int:
        return len(self.weights) // self.layer_bytes


@dataclasses.dataclass(frozen=True)
class Profile:
    """How much each layer or KV head of one model matters (`dkv calibrate`)."""

    name: str
    weights: list[list[float]]  # [layers][KV heads], or [layers][1]: the heads of a layer alike.
    alpha: float  # Budgets go with weight**alpha …
    floor: float  # … and every head keeps at least this share of the mean.
    kernel: int | None = None  # Of the pooling that it was measured with: used where the policy names none.
    surrogate: Surrogate | None = None

    def __post_init__(self):
        checks.text("profile.name", self.name)
        try:
            weights = [[float(weight) for weight in row] for row in self.weights]
        except (TypeError, ValueError):
            weights = []
        if not weights or not weights[0] or len({len(row) for row in weights}) != 1:
            raise checks.refusal("profile.weights", self.weights, "[layers][KV heads] numbers, every layer alike")
        object.__setattr__(self, "weights", weights)
        for name in ("alpha", "floor"):
            value = getattr(self, name)
            object.__setattr__(self, name, checks.number(f"profile.{name}", value, "a number", lambda _: True))
        if self.kernel is not None:
            object.__setattr__(self, "kernel", checks.count("profile.kernel", self.kernel))
        if self.surrogate is not None:
            checks.instance("profile.surrogate", self.surrogate, Surrogate)
            if self.surrogate.layers != len(weights):
                raise checks.refusal("profile.surrogate", self.surrogate.layers, f"of {len(weights)} layers, as the weights are")


def _check_policy(self) -> None:
    if self.name is not None:
        checks.text("name", self.name)
    for name, value in parameters.checked(vars(self)).items():
        object.__setattr__(self, name, value)
    if self.profile is not None:
        checks.instance("profile", self.profile, Profile)


Policy = dataclasses.make_dataclass(
    "Policy",
    [
        ("name", "str | None", None),
        *((each.name, f"{each.kind.__name__} | None", None) for each in parameters.PARAMETERS),
        ("profile", "Profile | None", None),
    ],
    frozen=True,
    namespace={"__module__": __name__, "__post_init__": _check_policy},
)
Policy.__doc__ = f"""A wish; None means the default: the named policy's own, or without a name what the sidecar is configured with.
What the operator set goes before it.

{parameters.lines("    ")}
    profile          dynamickv: a dkv.Profile

Of capacity, ratio, bytes and keep_mass give one at most.

Raises DkvError (INVALID_ARGUMENT) for a value of another type, and for one that no policy could use. What
depends on the policy (a capacity below its window) is checked by the sidecar when a session is opened.
"""


@dataclasses.dataclass(frozen=True)
class Event:
    kind: EventKind
    layer: int


@dataclasses.dataclass(frozen=True)
class Plan:
    compress: bool  # False: this prompt is kept whole; nothing more is needed but close.
    window: int  # Rows of queries wanted with each layer.
    policy: str
    capacity: int


@dataclasses.dataclass(frozen=True)
class Result:
    committed: bool
    bytes_full: int
    bytes_kept: int
    bytes_block_table: int
    busy_ns: int


@dataclasses.dataclass(frozen=True)
class LayerView:
    """Where a layer's rows are: row r of head h at keys + head_offset[h] + r * row bytes.

    `keys` and `values` are addresses; less the base of the arena of this form they are offsets.
    All but `form` is None for LayerForm.FULL. `positions` has a list per KV head when PACKED.
    """

    form: LayerForm
    keys: int | None = None
    values: int | None = None
    lengths: list[int] | None = None  # Rows, per KV head.
    head_offset: list[int] | None = None  # Bytes, per KV head.
    positions: list[list[int]] | None = None
    mass_kept: float | None = None  # Share of the window's attention on kept tokens; None: unknown.


@dataclasses.dataclass(frozen=True)
class EngineState:
    attached: bool
    instance: int
    boot_id: int  # Of the last sidecar; 0: never attached.
    sessions_opened: int
    sessions_failed: int
    last_error: str
