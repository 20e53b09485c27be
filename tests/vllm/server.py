"""vLLM's own OpenAI server in processes of its own: front end, engine core and worker, as users run it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
from conftest import transfer
from processes import waited_for

START_S = 900  # Three processes that import vLLM, on a machine that is busy.
ANSWER_S = 300


class Server:
    def __init__(self, model: str, endpoint: str, log: Path, *arguments: str):
        self.log, port = log, _free_port()
        words = [
            *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
            *("--model", model, "--served-model-name", "model", "--port", str(port), "--host", "127.0.0.1"),
            *("--skip-tokenizer-init", "--dtype", "float32", "--enforce-eager", "--block-size", "32"),
            *("--max-model-len", "1024", "--no-enable-prefix-caching", "--num-gpu-blocks-override", "600"),
            *("--kv-transfer-config", json.dumps(transfer(endpoint=endpoint)), *arguments),
        ]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
            "VLLM_LOGGING_LEVEL": "INFO",
        }
        with open(log, "ab") as out:
            # A session of its own: one group of processes, which ends as a whole.
            self._process = subprocess.Popen(words, env=environment, stdout=out, stderr=out, start_new_session=True)
        self._client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=ANSWER_S)

    def wait(self) -> None:
        waited_for(self._started, "vLLM's server", START_S)

    def _started(self) -> bool:
        if self._process.poll() is not None:
            raise RuntimeError(f"vLLM's server ended with {self._process.returncode}: {self.log.read_text()[-4000:]}")
        try:
            return self._client.get("/health").status_code == 200
        except httpx.TransportError:
            return False

    def answer(self, prompt: list[int], count: int, dkv: object = None) -> tuple[list[int], int]:
        """The tokens that are said, and how many blocks the request gave back."""
        done = self._client.post("/v1/completions", json=_body(prompt, count, dkv))
        done.raise_for_status()
        said = done.json()
        return said["choices"][0]["token_ids"], said["kv_transfer_params"]["dkv_blocks_given_back"]

    def stream(self, prompt: list[int], count: int, dkv: object = None) -> list[int]:
        tokens = []
        with self._client.stream("POST", "/v1/completions", json=_body(prompt, count, dkv) | {"stream": True}) as lines:
            lines.raise_for_status()
            for line in lines.iter_lines():
                if line.startswith("data: {"):
                    event = json.loads(line.removeprefix("data: "))
                    assert "error" not in event, event
                    tokens += event["choices"][0]["token_ids"]
        return tokens

    def metric(self, name: str) -> float:
        """A gauge of vLLM's own."""
        lines = self._client.get("/metrics").text.splitlines()
        return float(next(line for line in lines if line.startswith(name)).rsplit(" ", 1)[1])

    def stop(self) -> None:
        self._client.close()
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()


def _body(prompt: list[int], count: int, dkv: object) -> dict:
    wish = {} if dkv is None else {"kv_transfer_params": {"dkv": dkv}}
    return dict(
        model="model", prompt=prompt, max_tokens=count, temperature=0, ignore_eos=True, return_token_ids=True, **wish
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
