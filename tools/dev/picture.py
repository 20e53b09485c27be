#!/usr/bin/env python3
"""docs/watch.svg: what `dkv watch` shows while SmolLM2 reads a licence, recorded from a real terminal.

    make build && .venv/bin/python tools/dev/picture.py [-o docs/watch.svg]
"""
import argparse
import fcntl
import os
import pathlib
import pty
import re
import select
import struct
import subprocess
import sys
import tempfile
import termios
import time

from rich.console import Console
from rich.text import Text

ROOT = pathlib.Path(__file__).resolve().parents[2]
COLUMNS, ROWS = 118, 30
ENGINE = """
import time, dkv.hf
model, tokenizer = dkv.hf.load_smollm2()
text = open("/usr/share/common-licenses/GPL-2").read()[:8000]
inputs = tokenizer(text, return_tensors="pt")
for policy in ("dynamickv", "snapkv", "auto"):
    cache = dkv.hf.Cache(model, policy=policy, capacity=512)
    model.generate(**inputs, past_key_values=cache, max_new_tokens=4, do_sample=False)
print("done", flush=True)
time.sleep(60)
"""


def frames(program, environment, seconds):
    """What a terminal of COLUMNS x ROWS got from the program."""
    child, terminal = pty.fork()
    if child == 0:
        os.execvpe(program[0], program, environment)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    got, end = b"", time.time() + seconds
    while time.time() < end:
        if select.select([terminal], [], [], 0.2)[0]:
            got += os.read(terminal, 65536)
    os.kill(child, 2)
    os.waitpid(child, 0)
    return got.decode()


def last_frame(recorded):
    """The text after the last jump to the top left corner, without the cursor's moves."""
    frame = re.split(r"\x1b\[H|\x1b\[1;1H", recorded)[-1]
    frame = re.sub(r"\x1b\[[0-9;?]*[A-HJKSTfhlsu]", "", frame)
    return frame.replace("\r", "").rstrip() + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", default=ROOT / "docs/watch.svg", type=pathlib.Path)
    parser.add_argument("--bin", default=ROOT / ".venv/bin", type=pathlib.Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "DKV_ENDPOINT": f"ipc://{folder}/dkvd.sock", "TERM": "xterm-256color"}
        environment.pop("NO_COLOR", None)
        daemon = subprocess.Popen([options.bin / "dkvd"], env=environment, stderr=subprocess.DEVNULL)
        engine = subprocess.Popen([sys.executable, "-c", ENGINE], env=environment, stdout=subprocess.PIPE, text=True)
        try:
            assert engine.stdout.readline() == "done\n"
            recorded = frames([str(options.bin / "dkv"), "watch"], environment, 4)
        finally:
            engine.kill()
            daemon.terminate()
    console = Console(record=True, width=COLUMNS, file=open(os.devnull, "w"), force_terminal=True)
    console.print(Text.from_ansi(last_frame(recorded)))
    svg = console.export_svg(title="dkv watch")
    svg = re.sub(r"@font-face \{.*?\}", "", svg, flags=re.S)  # Fetched from a network otherwise.
    options.output.write_text(svg.replace("Fira Code", "DejaVu Sans Mono"))


if __name__ == "__main__":
    main()
