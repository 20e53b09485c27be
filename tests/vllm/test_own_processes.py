"""Two engines whose cores are processes of their own, on one dkvd."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

START_S = 600  # Four processes that import vLLM, on a machine that is busy.


def test_two_engines_share_a_sidecar(tiny, sidecar):
    script = Path(__file__).with_name("own_processes.py")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    words = [sys.executable, script, tiny, sidecar.endpoint]

    running = [
        subprocess.Popen(
            words,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # With its core: one group, which ends as a whole.
        )
        for _ in range(2)
    ]
    try:
        ends = [each.communicate(timeout=START_S) for each in running]
    finally:
        for each in running:
            if each.poll() is None:
                os.killpg(each.pid, signal.SIGKILL)

    for each, (_, errors) in zip(running, ends):
        assert each.returncode == 0, errors
    first, second = (json.loads(printed.splitlines()[-1]) for printed, _ in ends)
    assert [len(tokens) for tokens in first] == [200] * 3 and first == second
    savings = json.loads(sidecar.dkv("savings", "--json").stdout)
    assert len(savings["instances"]) == 2
    for instance in savings["instances"]:
        assert instance["savings"]["sessions"] == 3 and instance["savings"]["bytes_dropped"] > 0
