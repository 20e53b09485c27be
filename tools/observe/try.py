"""Tries the dashboard and the alert rules against a real Prometheus that scrapes a real dkvd under a real engine.

    python tools/observe/try.py [--bin build/release/bin] [--seconds 40] [--picture FILE.png]

Prometheus is Debian's package `prometheus`, found in PATH. Every query of dashboard.json has to be answered with
samples, and every rule has to be loaded and healthy; an alert has to come up for the sidecar that is stopped at the
end. --picture draws what Grafana would (it needs matplotlib). Exit status 0: all of it was seen.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SCRAPE_S = 1
RATE = "15s"  # Stands for Grafana's $__rate_interval.
GEOMETRY = "--layers 6 --q-heads 6 --kv-heads 2 --head-dim 64 --tokens 900".split()
# Nothing of these has to happen in a run that goes well.
MAY_BE_EMPTY = ("dkv_fail_opens_total", "dkv_errors_total")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


class Prometheus:
    def __init__(self, folder: pathlib.Path, target: int):
        rules = (HERE / "dkv.rules.yml").read_text().replace("for: 2m", "for: 2s")
        (folder / "dkv.rules.yml").write_text(rules)
        (folder / "prometheus.yml").write_text(
            f"global: {{scrape_interval: {SCRAPE_S}s, evaluation_interval: {SCRAPE_S}s}}\n"
            "rule_files: [dkv.rules.yml]\n"
            f"scrape_configs: [{{job_name: dkv, static_configs: [{{targets: ['127.0.0.1:{target}']}}]}}]\n"
        )
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.log = open(folder / "prometheus.log", "wb")
        self.process = subprocess.Popen(
            [
                shutil.which("prometheus"),
                f"--config.file={folder}/prometheus.yml",
                f"--storage.tsdb.path={folder}/tsdb",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=self.log,
            stderr=self.log,
        )

    def ask(self, path: str, **query) -> dict:
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)["data"]

    def firing(self) -> list[dict]:
        return [alert for alert in self.ask("alerts")["alerts"] if alert["state"] == "firing"]

    def wait(self, condition, what: str, seconds: float = 40):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                found = condition()
                if found:
                    return found
            except OSError:
                pass  # It starts.
            time.sleep(0.5)
        sys.exit(f"try: waited {seconds} s for {what}")


def work(binaries: pathlib.Path, endpoint: str, seconds: float) -> int:
    """Prompts of several policies and sizes, and one now and then that is refused. Returns how many ran."""
    end, count = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        policy = ("dynamickv", "snapkv", "pyramidkv", "no-such-policy")[count % 4]
        capacity = str((64, 128, 256)[count % 3])
        command = [binaries / "dkv_c_engine", "--endpoint", endpoint, *GEOMETRY, "--sessions", "2"]
        subprocess.run([*command, "--policy", policy, "--capacity", capacity], capture_output=True, timeout=60)
        count += 1
        time.sleep(0.3)
    return count


def queries() -> list[tuple[str, str, str]]:
    """(panel, legend, query) of the dashboard, with Grafana's variables filled in."""
    panels = json.loads((HERE / "dashboard.json").read_text())["panels"]

    def filled(query: str) -> str:
        return query.replace("$instance", ".*").replace("$__rate_interval", RATE)

    return [
        (panel["title"], target["legendFormat"], filled(target["expr"]))
        for panel in panels
        for target in panel["targets"]
    ]


def check_queries(prometheus: Prometheus) -> list[str]:
    wrong = []
    for panel, _, query in queries():
        result = prometheus.ask("query", query=query)["result"]
        if not result and not any(name in query for name in MAY_BE_EMPTY):
            wrong.append(f"{panel}: no sample for {query}")
        print(f"try: {panel}: {len(result)} series")
    return wrong


def draw(prometheus: Prometheus, begin: float, picture: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = list(dict.fromkeys(panel for panel, _, _ in queries()))
    columns = 4
    figure, axes = pyplot.subplots(-(-len(panels) // columns), columns, figsize=(22, 16))
    for axis, title in zip(axes.flat, panels):
        axis.set_title(title, fontsize=9)
        for _, legend, query in [each for each in queries() if each[0] == title]:
            for series in prometheus.ask("query_range", query=query, start=begin, end=time.time(), step="1s")["result"]:
                label = legend
                for name, value in series["metric"].items():
                    label = label.replace("{{" + name + "}}", value)
                times, values = zip(*series["values"])
                axis.plot([at - begin for at in times], [float(value) for value in values], label=label)
        if axis.lines:
            axis.legend(fontsize=6)
    figure.tight_layout()
    figure.savefig(picture, dpi=70)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bin", type=pathlib.Path, default=ROOT / "build/release/bin")
    parser.add_argument("--seconds", type=float, default=40)
    parser.add_argument("--picture")
    options = parser.parse_args()
    if shutil.which("prometheus") is None:
        sys.exit("try: no prometheus in PATH: apt-get install prometheus")
    with tempfile.TemporaryDirectory(prefix="dkv-observe-") as name:
        folder, port = pathlib.Path(name), free_port()
        endpoint = f"ipc://{folder}/dkvd.sock"
        command = [options.bin / "dkvd", "--endpoint", endpoint, "--metrics", str(port), "--log-level", "error"]
        dkvd = subprocess.Popen(command)
        prometheus = Prometheus(folder, port)
        try:
            prometheus.wait(lambda: prometheus.ask("query", query="dkv_ready == 1")["result"], "the first scrape")
            begin = time.time()
            print(f"try: {work(options.bin, endpoint, options.seconds)} engines ran")
            wrong = check_queries(prometheus)
            rules = prometheus.ask("rules")["groups"][0]["rules"]
            wrong += [f"rule {rule['name']}: {rule['lastError']}" for rule in rules if rule["health"] != "ok"]
            print(f"try: {len(rules)} rules are healthy" if not wrong else "try: faults")
            if options.picture:
                draw(prometheus, begin, options.picture)
            dkvd.terminate()
            fired = prometheus.wait(prometheus.firing, "an alert about the sidecar that was stopped")
            print("try: fired: " + fired[0]["annotations"]["summary"])
        finally:
            for process in (dkvd, prometheus.process):
                process.terminate()
                process.wait(30)
    sys.exit("\n".join(wrong) or 0)


if __name__ == "__main__":
    main()
