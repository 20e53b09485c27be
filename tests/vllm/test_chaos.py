"""A sample of tools/chaos beside a real vLLM: dkvd and the engine are struck at the states of a request's session."""

from __future__ import annotations

import os
import subprocess
import sys

from processes import ROOT, program

FAULTS = 8


def test_faults_beside_vllm_break_no_promise():
    paths = os.pathsep.join([str(ROOT / "protocol" / "python"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, ROOT / "tools/chaos/chaos.py", "--bin", program("dkvd").parent]
    seed = os.environ.get("DKV_SEED", "1")

    ran = subprocess.run(
        [*command, "--seed", seed, "--faults", str(FAULTS), "--vllm", str(FAULTS)],
        capture_output=True, text=True, timeout=900, env={**os.environ, "PYTHONPATH": paths},
    )  # fmt: skip

    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert f"{FAULTS} in vLLM), no promise broken" in ran.stdout
