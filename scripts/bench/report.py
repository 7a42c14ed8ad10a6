"""Readings as a table with ratios, and as JSON; what machine they are from."""

from __future__ import annotations

import json
import math
import os
import platform
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .readings import Metric, Reading
from .stats import median, ratio

Row = tuple[str, Metric]


@dataclass
class Results:
    """Readings of each server over all repetitions; `failed` says why one has none,
    `disturbed` what share of the cores others took where it was too much."""

    servers: list[str]
    values: dict[Row, dict[str, list[float]]] = field(default_factory=dict)
    failed: dict[str, dict[str, str]] = field(default_factory=dict)
    skipped: dict[str, dict[str, str]] = field(default_factory=dict)
    disturbed: dict[str, dict[str, float]] = field(default_factory=dict)

    def add(self, server: str, readings: Iterable[Reading]) -> None:
        for reading in readings:
            row = self.values.setdefault((reading.case, reading.metric), {})
            row.setdefault(server, []).append(reading.value)

    def skip(self, server: str, scenario: str, reason: str) -> None:
        self.skipped.setdefault(server, {})[scenario] = reason

    def fail(self, server: str, scenario: str, reason: str) -> None:
        self.failed.setdefault(server, {})[scenario] = reason

    def disturb(self, server: str, scenario: str, share: float) -> None:
        worst = self.disturbed.setdefault(server, {})
        worst[scenario] = max(share, worst.get(scenario, 0.0))

    def value(self, row: Row, server: str) -> float:
        """The median over the repetitions; NaN where there is none."""
        return median(self.values[row].get(server, []))


def table(results: Results, title: str, targets: dict[Row, str] | None = None) -> Table:
    """A row per case and metric. Behind each peer the ratio hxd/peer: green where hxd is better,
    red where it loses, by more than 2 % (what repetitions differ by on a quiet machine)."""
    shown = Table(title=title, box=None, pad_edge=False, title_justify="left")
    shown.add_column("case")
    shown.add_column("metric")
    ours, *peers = results.servers
    shown.add_column(ours, justify="right")
    for peer in peers:
        shown.add_column(peer, justify="right")
        shown.add_column("ratio", justify="right")
    if targets:
        shown.add_column("design asks: at least / aim")
    last = None
    for row in results.values:
        case, metric = row
        own = results.value(row, ours)
        cells: list[str | Text] = ["" if case == last else case, f"{metric.title}, {metric.unit}"]
        cells.append(number(own, metric.digits))
        for peer in peers:
            other = results.value(row, peer)
            cells += [number(other, metric.digits), _ratio(ratio(own, other), metric)]
        if targets:
            cells.append(targets.get(row, ""))
        shown.add_row(*cells)
        last = case
    return shown


def number(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:,.{digits}f}"


def _ratio(value: float, metric: Metric) -> Text:
    if math.isnan(value):
        return Text("")
    gain = value if metric.more_is_better else (1 / value if value else math.inf)
    style = "green" if gain > 1.02 else "red" if gain < 0.98 else ""
    return Text(f"{value:.2f}x", style=style)


def as_json(results: Results, about: dict[str, Any]) -> str:
    """`rows[].values` has every repetition, `median` what the table shows."""
    rows = [
        {
            "case": case,
            "metric": metric.title,
            "unit": metric.unit,
            "more_is_better": metric.more_is_better,
            "values": by_server,
            "median": {server: median(values) for server, values in by_server.items()},
        }
        for (case, metric), by_server in results.values.items()
    ]
    notes = {
        "failed": results.failed,
        "skipped": results.skipped,
        "disturbed": results.disturbed,
    }
    whole = {**about, "rows": rows, **notes}
    return json.dumps(_without_nan(whole), indent=2)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def machine() -> dict[str, Any]:
    """Facts that bear on speed; no names."""
    processor = ""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            processor = line.partition(":")[2].strip()
            break
    flags = Path("/proc/cpuinfo").read_text()
    return {
        "processor": processor or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "vector": [
            name for name in ("avx2", "avx512f", "avx512_vnni", "amx_int8") if name in flags
        ],
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9),
        "kernel": platform.release().partition("-")[0],
        "python": platform.python_version(),
    }


def publish(
    results: Results, about: dict[str, Any], title: str, targets: dict[Row, str], json_to: str
) -> None:
    """The table and what belongs below it; the JSON to a file too, or, for `-`, nothing else."""
    if json_to == "-":
        print(as_json(results, about))
        return
    if json_to:
        Path(json_to).write_text(as_json(results, about) + "\n")
    out = Console(width=None if sys.stdout.isatty() else 180, highlight=False)
    out.print(table(results, title, targets))
    for server, what in about["servers"].items():
        out.print(f"{server}: {what}")
    for server, shares in results.disturbed.items():
        listed = ", ".join(f"{name} ({share:.0%} of the cores)" for name, share in shares.items())
        out.print(f"[red]other processes disturbed[/] {server} in {listed}")
    for server, skipped in results.skipped.items():
        for name, reason in skipped.items():
            out.print(f"{name} was skipped on {server}: {reason}")
    for server, reasons in results.failed.items():
        out.print(f"[red]failed:[/] {server} in {', '.join(reasons)}; the reasons are above")
