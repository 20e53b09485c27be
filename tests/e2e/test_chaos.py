"""A sample of tools/chaos: fifty faults at the states of a session. `make chaos` tries two thousand."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from engines import DEVICE
from processes import ROOT, program

CHAOS = ROOT / "tools" / "chaos"
FAULTS, OF_THEM_SMOLLM2 = 50, 1

pytestmark = pytest.mark.skipif(bool(DEVICE), reason="about processes and connections, whatever the device")


def chaos(*flags: str) -> subprocess.CompletedProcess:
    paths = os.pathsep.join([str(ROOT / "protocol" / "python"), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, CHAOS / "chaos.py", "--bin", program("dkvd").parent, *flags],
        capture_output=True, text=True, timeout=900, env={**os.environ, "PYTHONPATH": paths},
    )  # fmt: skip


def test_fifty_faults_break_no_promise():
    seed = os.environ.get("DKV_SEED", "1")

    ran = chaos("--seed", seed, "--faults", str(FAULTS), "--hf", str(OF_THEM_SMOLLM2))

    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert f"{FAULTS} faults ({FAULTS - OF_THEM_SMOLLM2} beside the C engine, {OF_THEM_SMOLLM2} beside SmolLM2" in ran.stdout


def test_one_fault_is_played_alone_and_an_unknown_one_refused():
    ran = chaos("--seed", "17", "--only", "kill dkvd@planned")
    assert ran.returncode == 0, ran.stderr
    assert re.search(r"^\| kill dkvd \| - \| - \| - \| - \| 1[cpw] \|", ran.stdout, re.M)

    unknown = chaos("--seed", "17", "--only", "kill dkvd@nowhere")
    assert unknown.returncode == 1
    assert unknown.stderr.startswith("chaos: no fault 'kill dkvd@nowhere'")


def test_a_state_that_the_runner_does_not_reach_makes_it_fail(monkeypatch):
    monkeypatch.syspath_prepend(str(CHAOS))
    import states

    monkeypatch.delitem(states.REACHED, "planned")

    with pytest.raises(SystemExit, match=r"state.h has the states .*'planned'.*add or remove an entry of REACHED"):
        states.points()


def test_prompts_beyond_the_limit_are_refused_and_all_others_compressed():
    """tools/bench/load.py, with few engines: it fails for a wrong row, and for a refusal that is not limit_exceeded."""
    load = ROOT / "tools" / "bench" / "load.py"
    command = [sys.executable, load, "--bin", program("dkvd").parent, "--engines", "8", "--at-once", "2", "--minutes", "0"]

    ran = subprocess.run(command, capture_output=True, text=True, timeout=600)

    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "1,056 prompts at once: 1,024 compressed, 32 refused with `limit_exceeded`" in ran.stdout
