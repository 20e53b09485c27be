"""What print(cache.report()) says."""

from __future__ import annotations

from dkv.hf import Report


def test_a_report_in_words_says_what_was_kept_and_what_came_back():
    report = Report(
        policy="snapkv",
        window=32,
        prompt_tokens=1795,
        layers=2,
        compressed=True,
        kept_per_layer=[400.0, 624.0],
        mass_kept_per_layer=[0.9, None],
        bytes_full=80 << 20,
        bytes_kept=20 << 20,
        bytes_returned=60 << 20,
        engine_seconds=0.3,
        sidecar_seconds=0.1,
    )
    assert str(report).splitlines() == [
        "snapkv kept 512 of 1,795 tokens per KV head on average, in 2 layers (400 to 624)",
        "attention kept: 90.0% of what the window's queries give",
        "K and V: 80.0 MiB before, 20.0 MiB kept, 60.0 MiB seen to return to the system",
        "time: 0.30 s of the engine's, 0.10 s of the sidecar's",
    ]


def test_a_report_of_a_prompt_that_stayed_whole_says_why():
    assert str(Report()) == "not compressed: no prompt has ended yet"
    assert str(Report(kept_whole="the prompt has 20 tokens")) == "not compressed: the prompt has 20 tokens"
    assert str(Report(kept_whole="a", failure="no sidecar answers")) == "not compressed: no sidecar answers"
