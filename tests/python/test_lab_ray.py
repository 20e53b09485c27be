"""dkv-lab ray before a cluster is started: what is refused, and which cluster it would be. The rest is in tests/ray."""

from __future__ import annotations

import pytest

from dkv.errors import UserError
from dkv_lab import ray_work


def test_results_that_are_there_are_not_written_over(tmp_path):
    output = tmp_path / "r.jsonl"
    output.write_text("earlier rows\n")

    with pytest.raises(UserError, match="r.jsonl: is there already: give another output; dkv report takes both$"):
        ray_work.main(["sweep", str(tmp_path / "none"), "-o", str(output), "--", "--policy", "knorm"])

    assert output.read_text() == "earlier rows\n"
    assert [path.name for path in tmp_path.iterdir()] == ["r.jsonl"]


@pytest.mark.parametrize(
    "flag", ["-r", "--recursive", "--shard", "--shard=0/2", "--csv", "--csv=a.csv", "-o", "-oout", "-ro", "--output=o", "--config"]
)
def test_flags_that_cannot_mean_what_they_say_behind_the_dashes_are_refused(flag, capsys):
    with pytest.raises(SystemExit, match="^2$"):
        ray_work.parse(["sweep", "caches", "-o", "out", "--", "--policy", "knorm", flag])

    assert f"error: {flag} after --: " in capsys.readouterr().err


def test_flags_of_a_policy_are_passed_on():
    flags = ["--policy", "knorm,h2o", "--profile-alpha", "-0.5", "-j2", "--force", "--rope-dims=64"]

    assert ray_work.parse(["compact", "caches", "-o", "out", "--", *flags]).flags == flags


def test_only_an_address_that_was_given_is_attached_to():
    # Ray takes RAY_ADDRESS for an address that is None.
    parse = ray_work.parse
    assert ray_work.cluster(parse(["sweep", "c", "-o", "o", "--workers", "3"])) == {"address": "local", "num_cpus": 3}
    assert ray_work.cluster(parse(["sweep", "c", "-o", "o", "--address", "auto", "--workers", "3"])) == {"address": "auto"}
