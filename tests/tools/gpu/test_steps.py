"""Programs that are run in steps: what is said of those that do not end, are not there, or test nothing."""
import time

import pytest
import steps


def test_a_program_that_hangs_is_ended_with_its_children(tmp_path):
    # The child holds the output open and would be waited for; it must be gone.
    (tmp_path / "hangs").write_text(f"#!/bin/sh\necho begun\nsleep 60 & echo $! >{tmp_path}/child\nsleep 60\n")
    (tmp_path / "hangs").chmod(0o755)
    run = steps.Steps()
    begin = time.monotonic()
    run.run("hangs", [tmp_path / "hangs"], 1)
    assert time.monotonic() - begin < 20
    assert run.all[0]["status"] == "failed" and run.all[0]["why"] == "took longer than 1 s"
    assert run.all[0]["output"] == "begun\n"
    child = (tmp_path / "child").read_text().strip()
    state = ""
    while time.monotonic() - begin < 20 and state not in ("gone", "Z"):  # Whoever inherits it reaps it.
        try:
            with open(f"/proc/{child}/stat") as file:
                state = file.read().split()[2]
        except OSError:
            state = "gone"
    assert state in ("gone", "Z")


def test_a_program_that_is_not_there_is_a_failure(tmp_path):
    run = steps.Steps()
    run.run("absent", [tmp_path / "absent"], 1)
    assert run.all[0]["why"] == f"{tmp_path}/absent: No such file or directory"


def test_each_step_is_told_and_a_long_output_is_cut_in_its_middle():
    told = []
    run = steps.Steps(lambda: told.append(len(run.all)))
    run.run("long", ["sh", "-c", "seq 100000; exit 4"], 20)
    run.not_run("other", "no reason")
    assert told == [1, 2]
    assert run.all[0]["output"].startswith("1\n2\n") and run.all[0]["output"].endswith("99999\n100000\n")
    assert "\n[…]\n" in run.all[0]["output"] and len(run.all[0]["output"]) == sum(steps.SHOWN) + 5
    assert run.named("failed") == ["long"] and run.named("not run") == ["other"]


def test_tests_are_counted():
    step = {}
    steps.read_doctest("[doctest] test cases:  96 |  95 passed | 1 failed | 3 skipped\n", step)
    assert step["tests"] == {"passed": 95, "failed": 1, "skipped": 3}
    with pytest.raises(steps.NotRun, match="no test's name matches"):
        steps.read_doctest("[doctest] test cases:   0 |   0 passed | 0 failed | 96 skipped\n", step)
    with pytest.raises(ValueError, match="it printed no result of its tests"):
        steps.read_doctest("Status: SUCCESS!\n", step)


def test_kinds_of_memory_that_were_not_shared_are_named():
    step = {}
    steps.read_sharing("cuda_ipc\tok\ncuda_vmm_fd\tskipped: the driver is too old\n", step)
    assert step["memory"]["cuda_ipc"] == "ok" and step["why"] == "cuda_vmm_fd skipped: the driver is too old"
    with pytest.raises(ValueError, match="no kind of memory was shared"):
        steps.read_sharing("cuda_ipc\tskipped: not here\n", step)
