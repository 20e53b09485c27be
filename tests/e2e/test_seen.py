"""What an operator sees of a running dkvd: metrics, probes, logs, traces, bundles; and how it ends and reloads."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import urllib.error
import urllib.request

import pytest
from engines import CAPACITY, DEVICE, LAYERS, CEngine, run, status
from processes import ROOT, Sidecar, program, waited_for

OBSERVE = ROOT / "tools" / "observe"

pytestmark = pytest.mark.skipif(bool(DEVICE), reason="about the sidecar, whatever the device")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def fetch(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=15) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.fixture
def seen(tmp_path):
    """A sidecar with metrics, and the port where they are."""
    port = free_port()
    sidecar = Sidecar(tmp_path).start("--metrics", str(port))
    yield sidecar, port
    sidecar.stop()


def test_metrics_count_what_a_session_did_and_promtool_finds_nothing_wrong(seen):
    sidecar, port = seen
    code, _ = run(sidecar, "--policy", "dynamickv", "--capacity", str(CAPACITY))
    assert code == 0
    assert run(sidecar, "--policy", "nonsense")[1]["committed"] is False

    http, text = fetch(port, "/metrics")

    assert http == 200
    value = {name: float(number) for name, number in re.findall(r"^(dkv_\S+) (\S+)$", text, re.M)}
    assert value['dkv_sessions_total{outcome="adopted",policy="dynamickv"}'] == 1
    for stage in ("score", "select", "stage", "pack"):
        assert value[f'dkv_stage_seconds_count{{stage="{stage}"}}'] == LAYERS
    assert value['dkv_stage_seconds_count{stage="commit"}'] == 1
    assert value["dkv_mass_kept_ratio_count"] == 1
    assert value["dkv_bytes_dropped_total"] > 0
    assert value["dkv_bytes_returned_total"] > 0
    assert value["dkv_bytes_pool_total"] == 0
    assert value["dkv_session_peak_bytes"] > 0
    assert value['dkv_fail_opens_total{reason="not_found"}'] == 1
    assert value['dkv_errors_total{code="not_found"}'] == 1
    assert value['dkv_sessions_open{state="prefill"}'] == 0
    assert value["dkv_jobs_queued"] == 0
    assert value["dkv_uptime_seconds"] >= 0  # As of the last half second.
    assert 'dkv_build_info{backend="cpu' in text
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed (Debian: prometheus): the names of metrics are not linted")
    checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, timeout=60)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


def test_dashboard_and_rules_ask_for_metrics_that_are_served(seen):
    sidecar, port = seen
    assert run(sidecar, "--policy", "nonsense")[1]["committed"] is False
    assert run(sidecar, "--policy", "dynamickv", "--capacity", str(CAPACITY))[0] == 0
    served = set(re.findall(r"^# TYPE (\S+) ", fetch(port, "/metrics")[1], re.M))
    panels = json.loads((OBSERVE / "dashboard.json").read_text())["panels"]
    queries = [target["expr"] for panel in panels for target in panel["targets"]]
    queries.append((OBSERVE / "dkv.rules.yml").read_text())

    asked = {re.sub("_(bucket|sum|count)$", "", name) for name in re.findall(r"\bdkv_\w+", " ".join(queries))}

    assert len(asked) > 10
    assert asked <= served


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)")
def test_alert_rules_are_valid_and_fire_when_they_should():
    for command in (["check", "rules", "dkv.rules.yml"], ["test", "rules", "dkv.rules.test.yml"]):
        checked = subprocess.run(["promtool", *command], cwd=OBSERVE, capture_output=True, text=True, timeout=60)
        assert checked.returncode == 0, checked.stdout + checked.stderr


def test_probes_say_yes_while_it_serves_and_other_paths_are_not_there(seen):
    _, port = seen
    assert fetch(port, "/healthz") == (200, "ok\n")
    assert fetch(port, "/readyz") == (200, "ok\n")
    assert fetch(port, "/etc/passwd")[0] == 404
    assert fetch(port, "/")[0] == 404


def test_sigterm_lets_an_open_session_end_and_takes_no_new_one(tmp_path):
    port = free_port()
    sidecar = Sidecar(tmp_path).start("--metrics", str(port), "--drain-ms", "60000")
    engine = CEngine(sidecar, "--policy", "dynamickv", "--capacity", str(CAPACITY), "--pause-at-layer", "2")
    engine.line()

    sidecar.process.send_signal(signal.SIGTERM)
    waited_for(lambda: status(sidecar)["draining"], "the sidecar to drain")

    assert fetch(port, "/readyz") == (503, "draining: open sessions end, and no new one is taken\n")
    assert fetch(port, "/healthz")[0] == 200
    assert "draining: dkvd" in sidecar.dkv("status").stdout
    code, lines = CEngine(sidecar, "--timeout-ms", "2000").end()
    assert not lines[-1]["committed"]
    engine.go_on()
    code, lines = engine.end()
    assert code == 0
    assert lines[-1]["committed"]
    assert sidecar.process.wait(20) == 0
    assert "draining: 1 open sessions have 60000 ms to end" in sidecar.log.read_text()


@pytest.mark.parametrize("how", ["deadline", "second SIGTERM"])
def test_a_drain_ends_at_its_deadline_or_at_a_second_sigterm(tmp_path, how):
    sidecar = Sidecar(tmp_path).start("--drain-ms", "300" if how == "deadline" else "600000")
    engine = CEngine(sidecar, "--capacity", str(CAPACITY), "--pause-at-layer", "2", "--timeout-ms", "3000")
    engine.line()

    sidecar.process.send_signal(signal.SIGTERM)
    if how != "deadline":
        waited_for(lambda: status(sidecar)["draining"], "the sidecar to drain")
        sidecar.process.send_signal(signal.SIGTERM)

    assert sidecar.process.wait(20) == 0
    text = "1 sessions are still open after 300 ms; their engines go on uncompressed"
    assert (text in sidecar.log.read_text()) == (how == "deadline")
    engine.go_on()
    code, lines = engine.end()
    assert lines[-1]["rows_wrong"] == 0


def test_sighup_takes_what_may_change_and_refuses_the_rest_by_name(tmp_path):
    config = tmp_path / "dkvd.toml"
    config.write_text('policy = "snapkv"\ncapacity = 100\n')
    sidecar = Sidecar(tmp_path).start("--config", str(config))

    def reload(text: str, said: str) -> None:
        before = sidecar.log.read_text().count(said)
        config.write_text(text)
        sidecar.process.send_signal(signal.SIGHUP)
        waited_for(lambda: sidecar.log.read_text().count(said) > before, said)

    assert status(sidecar)["policy"]["capacity"] == 100
    reload('policy = "pyramidkv"\ncapacity = 300\nlog-level = "debug"\n', "the configuration is reloaded")
    assert (status(sidecar)["policy"]["name"], status(sidecar)["policy"]["capacity"]) == ("pyramidkv", 300)

    kept = "the configuration is not reloaded, the old one stays: "
    reload('policy = "snapkv"\nthreads = 3\n', kept + "--threads cannot change while dkvd runs: restart it")
    reload('policy = "snapkv"\n\nwindwo = 3\n', kept + f"{config}:3: no key 'windwo': did you mean window?")
    assert status(sidecar)["policy"]["name"] == "pyramidkv"
    sidecar.stop()


def test_sighup_without_a_file_is_a_line_of_the_log_where_there_is_no_terminal(sidecar):
    sidecar.process.send_signal(signal.SIGHUP)  # Under pytest stdin is not a terminal.

    said = "SIGHUP: dkvd was started without --config: nothing is read again"
    waited_for(lambda: said in sidecar.log.read_text(), said)
    assert sidecar.process.poll() is None


def test_config_check_names_key_line_and_what_was_expected(tmp_path):
    config = tmp_path / "dkvd.toml"

    def check(text: str) -> subprocess.CompletedProcess:
        config.write_text(text)
        return subprocess.run([program("dkv"), "config", "check", config], capture_output=True, text=True, timeout=30)

    good = check('policy = "snapkv"\ncapacity = 100\n')
    assert (good.returncode, good.stderr) == (0, "")
    assert good.stdout.startswith(f"{config}: good. dkvd would start with snapkv")
    bad = check('\ncapacity = "many"\n')
    assert (bad.returncode, bad.stdout) == (1, "")
    assert bad.stderr == f"dkv: {config}:2: capacity is 'many', expected a count\n"
    started = subprocess.run([program("dkvd"), "--config", config], capture_output=True, text=True, timeout=30)
    assert (started.returncode, started.stderr) == (2, f"dkvd: {config}:2: capacity is 'many', expected a count\n")


def test_one_id_names_a_session_in_the_engine_in_the_log_in_dkv_and_in_its_trace(tmp_path):
    sidecar = Sidecar(tmp_path).start("--log-format", "json")
    code, outcome = run(sidecar, "--policy", "dynamickv", "--capacity", str(CAPACITY))
    assert code == 0

    session = json.loads(sidecar.dkv("--json", "sessions").stdout)["sessions"][0]
    assert outcome["session"] == session["session"]  # As the engine knows it.
    lines = [json.loads(line) for line in sidecar.log.read_text().splitlines()]
    mine = [line for line in lines if line.get("session") == session["session"]]
    assert [line["instance"] for line in mine] == [session["instance"]]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", mine[0]["time"])
    assert mine[0]["level"] == "info"
    assert " tokens by dynamickv: " in mine[0]["message"]

    out = tmp_path / "trace.json"
    assert "spans of session " + session["session"] in sidecar.dkv("trace", session["session"], "-o", str(out)).stdout
    trace = json.loads(out.read_text())
    assert trace["otherData"]["session"] == session["session"]
    events = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    for stage in ("score", "select", "stage", "pack"):
        assert [event["args"]["layer"] for event in events if event["name"] == stage] == list(range(LAYERS))
    assert min(event["ts"] for event in events) == 0
    assert all(event["dur"] >= 0 for event in events)
    unknown = sidecar.dkv("trace", "0x5", check=False)
    assert "no session 0x0000000000000005 is open or remembered" in unknown.stderr
    sidecar.stop()


def test_status_as_csv_and_the_screen_once(seen):
    sidecar, _ = seen
    assert run(sidecar, "--policy", "dynamickv", "--capacity", str(CAPACITY))[0] == 0

    rows = list(csv.DictReader(io.StringIO(sidecar.dkv("status", "--csv").stdout)))
    assert rows[0]["instance"] == "all"
    assert rows[0]["sessions"] == "1"
    assert rows[0]["bytes_dropped"] == rows[1]["bytes_dropped"] != "0"
    assert re.fullmatch("0x[0-9a-f]{16}", rows[1]["instance"])
    screen = sidecar.dkv("watch", "--once", "--sort", "peak").stdout
    assert "\x1b" not in screen
    assert "savings  " in screen
    assert rows[1]["instance"] in screen
    assert json.loads(sidecar.dkv("watch", "--once", "--json").stdout)["sidecar"]["savings"]["sessions"] == 1


def test_a_bundle_for_a_bug_report_has_no_secret_in_it(seen, tmp_path):
    sidecar, _ = seen
    out = tmp_path / "bundle.json"
    home = tmp_path / "somebody"
    planted = {
        "HF_TOKEN": "hf_planted_1",
        "DKV_SECRET_THING": "planted-2",
        "my_db_password": "planted-3",
        "API_KEY": "planted-4",
        "HOME": str(home),
        "DKV_PROFILES": f"{home}/profiles:/data/planted-4/x:/home/somebody-else/y",
        "HF_ENDPOINT": "https://me:planted-5@hub.example/",
    }

    ran = subprocess.run(
        [program("dkv"), "--endpoint", sidecar.endpoint, "doctor", "--bundle", out],
        env={**os.environ, **planted}, capture_output=True, timeout=60,
    )  # fmt: skip
    assert ran.returncode in (0, 1), ran.stderr  # 1: this machine fails doctor, bundle or not.

    text = out.read_text()
    assert "planted" not in text
    assert str(home) not in text
    assert "somebody-else" not in text
    bundle = json.loads(text)
    assert bundle["environment"]["HF_TOKEN"] == "(removed)"
    assert bundle["environment"]["DKV_PROFILES"] == "~/profiles:/data/(removed)/x:~/y"
    assert bundle["environment"]["HF_ENDPOINT"] == "https://(removed)@hub.example/"
    assert "API_KEY" not in bundle["environment"]
    assert bundle["sidecar"]["status"]["version"] == bundle["dkv"]["version"]
    assert any(finding["name"] == "cpu" for finding in bundle["findings"]["findings"])
