"""Where a fault hits: every state of a session, as sidecar/session/state.h names them, and before there is one.

A state of that header without an entry in REACHED makes the runner fail, and so does an entry without a state.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
UP, DOWN = "engine to dkvd", "dkvd to engine"


@dataclasses.dataclass(frozen=True)
class Reached:
    """The message at which the proxy stops the line. `seen`: the session's state that dkvd shows meanwhile."""

    way: str
    message: str  # "Done(X)": the reply to X.
    after: str = ""  # Not before this message has passed.
    seen: str = ""  # "": the message itself is the evidence.
    flags: tuple[str, ...] = ()  # Of the C engine.


BEFORE = {
    "not attached": Reached(UP, "Hello"),
    "attached": Reached(UP, "OpenSession"),
}
REACHED = {
    "open": Reached(UP, "BindBuffers", seen="open"),
    "prefill": Reached(UP, "LayerReady", after="LayerReady", seen="prefill"),
    # The worker packs without waiting for anything: dkvd may be committed when a query would be answered.
    "planned": Reached(DOWN, "Planned"),
    "committed": Reached(UP, "Adopted", seen="committed"),
    "adopted": Reached(UP, "CloseSession", after="Adopted", seen="adopted"),
    "closed": Reached(DOWN, "Done(CloseSession)", seen="closed"),
    "failed": Reached(UP, "CloseSession", after="SessionFailed", seen="failed", flags=("--unwritten-layer", "2")),
}


def points() -> dict[str, Reached]:
    text = (ROOT / "sidecar/session/state.h").read_text()
    table = re.search(r"enum class SessionState[^{]*\{(.*?)\};", text, re.S)
    names = {name.lower() for name in re.findall(r"^\s*(\w+) = \d+", table[1], re.M)} if table else set()
    if names != set(REACHED):
        raise SystemExit(
            f"chaos: sidecar/session/state.h has the states {sorted(names)}, tools/chaos/states.py reaches "
            f"{sorted(REACHED)}: add or remove an entry of REACHED"
        )
    return {**BEFORE, **REACHED}


def message_names() -> list[str]:
    """Members of the wire's union, by number."""
    text = re.sub(r"//.*", "", (ROOT / "protocol/schema/dkv.fbs").read_text())
    return ["NONE", *re.search(r"union Body \{(.*?)\}", text, re.S)[1].replace("\n", " ").replace(" ", "").split(",")]
