"""How far a long run is, on stderr: a bar on a terminal, a plain line now and then elsewhere.

How long all of it takes is said beforehand, from the first prompts: as soon as one of each kind was measured.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator

from .needles import Row

_LINE_SECONDS = 30.0
_SAMPLE = 6  # Prompts after which the estimate is made, whatever kinds are still to come.


class Pace:
    """Seconds per token of each kind of prompt, and what is left of them. Pure."""

    def __init__(self, rows: list[Row]):
        self._left = Counter()
        self._spent: dict[str, tuple[float, int]] = {}
        self.total, self.done = len(rows), 0
        for row in rows:
            self._left[row.task] += len(row.tokens)

    def add(self, row: Row, seconds: float) -> None:
        before, tokens = self._spent.get(row.task, (0.0, 0))
        self._spent[row.task] = before + seconds, tokens + len(row.tokens)
        self._left[row.task] -= len(row.tokens)
        self.done += 1

    def is_known(self) -> bool:
        """Whether left() is more than a guess."""
        return self.done >= min(self.total, _SAMPLE) or all(kind in self._spent for kind in self._left)

    def left(self) -> float:
        """Seconds. Kinds that were not measured yet take as long as the mean."""
        mean = self.spent() / max(1, sum(tokens for _, tokens in self._spent.values()))
        rates = {kind: seconds / tokens for kind, (seconds, tokens) in self._spent.items()}
        return sum(tokens * rates.get(kind, mean) for kind, tokens in self._left.items())

    def spent(self) -> float:
        return sum(seconds for seconds, _ in self._spent.values())


def words(seconds: float) -> str:
    """ "40 s", "12 min", "3 h 20 min"."""
    if seconds < 100:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


class Reporter:
    """What is said, in lines; `write` gets each."""

    def __init__(self, title: str, rows: list[Row], write: Callable[[str], None], after: str, clock: Callable[[], float]):
        self._title, self._write, self._after, self._clock = title, write, after, clock
        self._pace = Pace(rows)
        self._announced = False
        self._last = self._said = clock()

    def step(self, row: Row, lines: bool) -> None:
        """One prompt is done. lines: also say now and then how far it is."""
        now = self._clock()
        self._pace.add(row, now - self._last)
        self._last = now
        if not self._announced and self._pace.is_known():
            self._announced, self._said = True, now
            whole = words(self._pace.spent() + self._pace.left())
            self._write(f"{self._title}: about {whole} for {self._pace.total} prompts{self._after}")
        elif lines and (now - self._said >= _LINE_SECONDS or self._pace.done == self._pace.total):
            self._said = now
            left = f", about {words(self._pace.left())} left" if self._pace.done < self._pace.total else ""
            self._write(f"{self._title}: {self._pace.done} of {self._pace.total} prompts in {words(self._pace.spent())}{left}")


@contextlib.contextmanager
def of(title: str, rows: list[Row], known: int = 0, after: str = "", clock=time.monotonic) -> Iterator[Callable[[Row], None]]:
    """Yields what is to be called with each of `rows` when it is done.

    known   prompts of an earlier run, which are not among `rows`
    after   what the first estimate does not count, in words
    """
    from rich.console import Console
    from rich.progress import Progress, TimeElapsedColumn

    console = Console(stderr=True)
    if known:
        print(f"{title}: {known} of {known + len(rows)} prompts are known from an earlier run", file=sys.stderr)
    elif rows:
        print(f"{title}: {len(rows)} prompts; the first will show how long that takes", file=sys.stderr, flush=True)
    if not console.is_terminal:
        report = Reporter(title, rows, lambda line: print(line, file=sys.stderr, flush=True), after, clock)
        yield lambda row: report.step(row, lines=True)
        return
    columns = (*Progress.get_default_columns(), TimeElapsedColumn())
    with Progress(*columns, transient=True, console=console) as bar:
        report = Reporter(title, rows, lambda line: console.print(line, highlight=False, markup=False), after, clock)
        task = bar.add_task(title, total=len(rows))

        def step(row: Row) -> None:
            report.step(row, lines=False)
            bar.advance(task)

        yield step
