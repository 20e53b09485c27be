"""How the lab's programs end: what a user can mend is one line, not a traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import dkv


def expected() -> tuple[type[Exception], ...]:
    """Errors whose message says all there is to say."""
    from dkv.hf.weights import WeightsNotFound

    from . import figures, longbench, metrics, policies, probe, profile, refine, results, sidecar, sources

    return (
        WeightsNotFound,
        FileNotFoundError,
        dkv.DkvError,
        figures.FigureError,
        longbench.LongBenchError,
        metrics.MetricError,
        policies.UnknownPolicy,
        probe.ProbeError,
        profile.ProfileError,
        refine.RefineError,
        results.ResultsError,
        sidecar.SidecarError,
        sources.NoText,
    )


def run(main: Callable[[], int]) -> int:
    """main()'s exit status; 1 for what was expected to fail, 130 for Ctrl-C."""
    name = os.environ.get("DKV_COMMAND", "dkv.lab")
    try:
        return main()
    except KeyboardInterrupt:
        print(f"\n{name}: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    except expected() as error:
        print(f"{name}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
