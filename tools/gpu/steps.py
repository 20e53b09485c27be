"""Runs programs one after the other and keeps what became of each: passed, failed, or not run and why."""
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time

SHOWN = 2000, 6000  # Characters of a failed step's output that are kept: its beginning, its end.


class NotRun(Exception):
    """What a program was asked for is not to be had here."""


class Steps:
    """In order. `on_change` is told after each, so that what was seen outlives what is interrupted."""

    def __init__(self, on_change=lambda: None):
        self.all = []
        self._on_change = on_change

    def not_run(self, name, why):
        self._add({"name": name, "status": "not run", "why": why})

    def run(self, name, command, seconds, read=None, reads_failures=False, **environment):
        """What `read` makes of the output, or None. `read(output, step)` may add to the step; ValueError: it is not
        what such a program prints. With `reads_failures` a failed program's output is read, too."""
        command = [str(part) for part in command]
        step = {"name": name, "status": "failed", "command": " ".join(command)}
        print(f"running  {name}", flush=True)
        begin = time.monotonic()
        output, problem = self._output_of(command, seconds, environment, step)
        step["seconds"] = round(time.monotonic() - begin, 2)
        result = None
        try:
            if read is not None and (problem is None or reads_failures):
                result = read(output, step)
            if problem is None:
                step["status"] = "passed"
        except NotRun as why:
            step["status"], problem = "not run", str(why)
        except ValueError as why:
            problem = problem or str(why)
        if problem is not None:
            step["why"] = problem
        if step["status"] == "failed":
            first, last = SHOWN
            step["output"] = output if len(output) <= first + last else f"{output[:first]}\n[…]\n{output[-last:]}"
        self._add(step)
        return result

    @staticmethod
    def _output_of(command, seconds, environment, step):
        """(what it printed, what went wrong or None). Into a file: a pipe would be waited for as long as any process
        that it left behind holds it."""
        with tempfile.TemporaryFile() as file:
            try:
                process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
                                           env={**os.environ, **environment}, start_new_session=True)
            except OSError as error:
                return "", f"{command[0]}: {error.strerror}"
            try:
                status = process.wait(seconds)
                problem = None if status == 0 else ended(status)
                if status != 0:
                    step["exit_status"] = status
            except BaseException as why:  # Interrupted, too: nothing of it is to stay on the GPU.
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                if not isinstance(why, subprocess.TimeoutExpired):
                    raise
                problem = f"took longer than {seconds} s"
            file.seek(0)
            return file.read().decode(errors="replace"), problem

    def _add(self, step):
        self.all.append(step)
        print(f"{step['status']:8} {step['name']}" + (f": {step['why']}" if "why" in step else ""), flush=True)
        if step["status"] == "failed":
            print(step["output"], file=sys.stderr, flush=True)
        self._on_change()

    def named(self, status):
        return [step["name"] for step in self.all if step["status"] == status]


def ended(status):
    return f"killed by signal {-status}, {signal.strsignal(-status)}" if status < 0 else f"exit status {status}"


def read_doctest(output, step):
    """Counts the tests: a filter that leaves none would pass."""
    found = re.findall(r"^\[doctest\] test cases: +(\d+) \| +(\d+) passed \| +(\d+) failed \| +(\d+) skipped", output,
                       re.MULTILINE)
    if not found:
        raise ValueError("it printed no result of its tests")
    _, passed, failed, skipped = map(int, found[-1])
    step["tests"] = {"passed": passed, "failed": failed, "skipped": skipped}
    if passed + failed == 0:
        raise NotRun("no test's name matches")


def read_sharing(output, step):
    """dkv_gpu_ipc's "kind of memory, tab, ok or why not"."""
    kinds = dict(line.split("\t", 1) for line in output.splitlines() if "\t" in line)
    if "ok" not in kinds.values():
        raise ValueError("no kind of memory was shared")
    step["memory"] = kinds
    if skipped := [f"{kind} {said}" for kind, said in kinds.items() if said != "ok"]:
        step["why"] = "; ".join(skipped)


def find_program(name, *folders):
    """The path of what is in a folder or on PATH, or None."""
    places = [*folders, *os.environ.get("PATH", "").split(os.pathsep)]
    candidates = (pathlib.Path(place) / name for place in places if place)
    return next((path for path in candidates if path.is_file() and os.access(path, os.X_OK)), None)
