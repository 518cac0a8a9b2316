"""Pictures of figures for the README: small, on a light ground, legible where they are shown small.

matplotlib comes with the extra `bench`; without it there are numbers and no pictures, and that is said.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import ROOT
from benchmarks.runner import Figure, Spread
from benchmarks.steady import PERCENTILES

FOLDER = ROOT / "benchmarks" / "curves"
COLOURS = ("#1f5fa8", "#c8541a", "#2f7d4f", "#7a4fa0", "#8a8a8a")
SIZE_IN, DPI = (6.0, 3.4), 110


def save(
    name: str, title: str, axes: Mapping[str, Any], lines: Iterable[tuple[str, Sequence[Any], Sequence[float]]]
) -> None:
    """Draw *lines* into `curves/<name>.png`.

    Args:
        name: Of the file.
        title: Above the picture.
        axes: What matplotlib's `Axes.set` takes: labels, scales, limits, ticks.
        lines: What to draw.
    """
    if importlib.util.find_spec("matplotlib") is None:
        print(f"no picture of {name}: matplotlib is not installed (make install-bench)", file=sys.stderr)
        return
    import matplotlib as mpl  # only here: figures do without

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, ax = plt.subplots(figsize=SIZE_IN, dpi=DPI, facecolor="white")
    for colour, (label, x, y) in zip(COLOURS, lines, strict=False):
        ax.plot(x, y, marker="o", markersize=4, linewidth=1.8, color=colour, label=label)
    ax.set(**axes)
    ax.minorticks_off()
    ax.set_title(title, fontsize=11, loc="left")
    ax.grid(visible=True, which="major", color="#dddddd", linewidth=0.8)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=9)
    FOLDER.mkdir(exist_ok=True)
    figure.tight_layout()
    figure.savefig(FOLDER / f"{name}.png", pil_kwargs={"optimize": True})
    plt.close(figure)


def file_of(name: str) -> Path:
    """Where the picture *name* is, its numbers beside it with `.json`."""
    return FOLDER / f"{name}.png"


def latency(figures: Mapping[str, Figure], rates: Sequence[int]) -> None:
    """Percentiles of lateness at the handler, a line for each rate that was kept up with."""
    names = list(PERCENTILES)
    lines = []
    for rate in rates:
        found = [figures[f"latency_ms.at_{rate}.handler.{name}"] for name in names]
        ms = [one.median if isinstance(one, Spread) else one for one in found if isinstance(one, float | Spread)]
        if len(ms) == len(names):
            lines.append((f"{rate:,} events/s", range(len(names)), ms))
    labels = [name.removeprefix("p").replace("_", ".") + " %" for name in names]
    save(
        "latency",
        "Lateness under load, policies reloading and keys rotating",
        {
            "yscale": "log",
            "ylabel": "ms, intended send to handler",
            "xlabel": "percentile of events",
            "xticks": range(len(names)),
            "xticklabels": labels,
        },
        lines,
    )
