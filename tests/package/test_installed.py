"""The package on a machine that has never seen dkv: real systemd, the unit as it is shipped, engines of its user."""

from __future__ import annotations

import pytest
from processes import waited_for

NOT_YOURS = "belongs to user"


@pytest.fixture(autouse=True)
def as_shipped(machine):
    yield
    machine.no_drop_in()


def test_installing_starts_the_service_which_answers_its_user(machine):
    assert machine.unit("ActiveState") == "active"
    assert machine.unit("StatusText") == "listens at ipc:///run/dkv/dkvd.sock"
    assert "running: dkvd" in machine.run("dkv", "status", user="dkv")
    assert NOT_YOURS in machine.run("dkv", "status", user="nobody", codes=(1, 3, 4))
    assert "2:" not in machine.run("systemctl", "--failed", "--no-legend")


@pytest.mark.parametrize("arena", ["memfd", "posix_shm"])
def test_an_engine_of_that_user_is_compressed_through_the_sandbox(machine, arena):
    done = machine.engine(user="dkv", DKV_ARENA=arena)

    assert (done["status"], done["rows_wrong"]) == ("ok", 0)
    assert done["committed"] and done["bytes_kept"] < done["bytes_full"]


def test_an_engine_of_another_user_runs_uncompressed_and_says_why(machine):
    done = machine.engine(user="nobody", codes=(3,))

    assert not done["committed"] and NOT_YOURS in done["error"]


def test_an_engine_that_may_do_more_than_dkvd_runs_uncompressed_and_says_why(machine):
    more = ("setpriv", "--reuid=dkv", "--regid=dkv", "--clear-groups", "--inh-caps=+sys_nice", "--ambient-caps=+sys_nice")
    done = machine.engine(before=more, codes=(3,))

    assert not done["committed"] and done["status"] == "permission_denied"
    assert "start the engine without capabilities, or set DKV_ARENA=posix_shm for it" in done["error"]
    assert machine.engine(before=more, DKV_ARENA="posix_shm")["committed"]


def test_the_process_has_no_capability_and_a_filter(machine):
    lines = machine.run("cat", f"/proc/{machine.unit('MainPID')}/status").splitlines()
    status = {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
    assert {status[f"Cap{which}"].strip("0") for which in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {""}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    written = machine.run("find", "/run/dkv", "-printf", "%m %u %y %f\n").splitlines()
    assert "700 dkv d dkv" in written and "600 dkv s dkvd.sock" in written


def test_metrics_are_served_on_loopback(machine):
    machine.drop_in("[Service]\nExecStart=\nExecStart=/usr/bin/dkvd --config /etc/dkv/dkvd.toml --metrics 127.0.0.1:9464\n")
    fetch = "exec 3<>/dev/tcp/127.0.0.1/9464; printf 'GET /metrics HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3"
    assert "dkv_instances" in machine.run("bash", "-c", fetch)


def test_a_dkvd_that_hangs_is_restarted_by_the_watchdog(machine):
    machine.drop_in("[Service]\nWatchdogSec=2\nTimeoutAbortSec=2\n")
    hung = machine.unit("MainPID")

    machine.run("systemctl", "kill", "-s", "STOP", "--kill-who=main", "dkvd")
    waited_for(lambda: machine.unit("NRestarts") == "1" and machine.unit("ActiveState") == "active", "a restart", 60)

    assert machine.unit("MainPID") != hung
    assert "running: dkvd" in machine.run("dkv", "status", user="dkv")


def test_a_dkvd_that_is_killed_comes_back_and_one_that_is_stopped_stays_away(machine):
    machine.run("systemctl", "kill", "-s", "KILL", "dkvd")
    waited_for(lambda: machine.unit("NRestarts") == "1" and machine.unit("ActiveState") == "active", "a restart", 60)

    machine.run("dkv", "stop", user="dkv")
    waited_for(lambda: machine.unit("ActiveState") == "inactive", "the end")
    assert machine.unit("Result") == "success"


def test_reloading_reads_the_config_again_and_refuses_a_wrong_one(machine):
    config = machine.root / "etc/dkv/dkvd.toml"
    shipped = config.read_text()
    try:
        config.write_text(shipped + "capacity = 100\n")
        machine.run("systemctl", "reload", "dkvd")
        waited_for(lambda: "capacity=100" in machine.run("dkv", "status", user="dkv"), "the new capacity")

        config.write_text(shipped + "capacity = -1\n")
        machine.run("systemctl", "reload", "dkvd", codes=(1,))
        assert machine.unit("ActiveState") == "active"
        assert "capacity=100" in machine.run("dkv", "status", user="dkv")
    finally:
        config.write_text(shipped)


def test_the_service_can_be_given_to_the_user_of_the_engines(machine):
    machine.run("useradd", "--system", "inference")
    machine.drop_in("[Service]\nUser=inference\n")

    assert machine.engine(user="inference")["committed"]


def test_removing_keeps_the_config_and_purging_removes_everything(machine):
    def left() -> list[str]:
        places = "/etc/dkv /usr/bin/dkv /usr/bin/dkvd /run/dkv /usr/lib/systemd/system/dkvd.service /var/lib/dpkg/info/dkv.list"
        return machine.run("sh", "-c", f"ls -d {places} 2>/dev/null; true").split()

    machine.run("apt-get", "remove", "-y", "-q", "dkv")
    assert left() == ["/etc/dkv", "/var/lib/dpkg/info/dkv.list"]

    machine.run("apt-get", "purge", "-y", "-q", "dkv")
    assert left() == []
    assert "dkvd" not in machine.run("systemctl", "list-unit-files", "--no-legend")
    machine.run("sh", "-c", "dpkg -i /opt/dkv_*.deb")  # And it can come back.
    assert machine.unit("ActiveState") == "active"
