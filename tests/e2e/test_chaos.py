"""A sample of tools/chaos: about a hundred faults at the states of a session. `make chaos` tries two thousand."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from engines import DEVICE
from processes import ROOT, program

CHAOS = ROOT / "tools" / "chaos"
FAULTS, OF_THEM_SMOLLM2 = 100, 3

pytestmark = pytest.mark.skipif(bool(DEVICE), reason="about processes and connections, whatever the device")


def chaos(*flags: str) -> subprocess.CompletedProcess:
    paths = os.pathsep.join([str(ROOT / "protocol" / "python"), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, CHAOS / "chaos.py", "--bin", program("dkvd").parent, *flags],
        capture_output=True, text=True, timeout=900, env={**os.environ, "PYTHONPATH": paths},
    )  # fmt: skip


def test_a_hundred_faults_break_no_promise():
    seed = os.environ.get("DKV_SEED", "1")

    ran = chaos("--seed", seed, "--faults", str(FAULTS), "--hf", str(OF_THEM_SMOLLM2))

    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert f"{FAULTS} faults ({FAULTS - OF_THEM_SMOLLM2} beside the C engine, {OF_THEM_SMOLLM2} beside SmolLM2" in ran.stdout


def test_a_fault_is_played_again_by_its_seed_and_an_unknown_one_refused():
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
