"""The residual of a restoration over its iterations, drawn as an SVG."""

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

WIDTH, HEIGHT = 760, 280
LEFT, RIGHT, TOP, BOTTOM = 62, 744, 40, 240  # the plot's edges in the picture
STAGES = {"soft": "soft step", "pixel": "pixel", "latent": "latent", "final": "final", "refine": "refine"}
SMALLEST = 1e-12  # below it, a residual is drawn as this: a logarithm needs one

# Colours come in pairs, for a light and a dark page; programs that know no `light-dark` take the light one.
_COLOURS = {"soft": "#777 #999", "pixel": "#1f6fd0 #5b9df0", "latent": "#d9480f #ff8a4c"}
_COLOURS |= {"final": "#0c8a5b #38c48d", "refine": "#9333b5 #c77be0", "floor": "#b00020 #ff6b7f", "ink": "#333 #ccc"}
_COLOURS |= {"grid": "#e2e2e2 #3a3a3a", "other": "#777 #999"}


class _Event(NamedTuple):
    """An optimisation: where it begins on the axis of iterations, and its row of the trace."""

    start: int
    row: Mapping[str, Any]

    @property
    def stage(self) -> str:
        return self.row["stage"] if self.row["stage"] in STAGES else "other"


def residual_plot(trace: Sequence[Mapping[str, Any]]) -> str:
    """Return the mean squared residual over the iterations of all optimisations, one after the other, as an SVG.

    The noise's floor is drawn as a dashed line, the loss that an optimisation stops below as a dotted one.

    Args:
        trace: rows with the columns `TRACE` and ``losses``, pairs of an iteration and its loss.
    """
    events = list(_events(trace))
    floor = next((row["noise_floor"] for _, row in events if row["noise_floor"]), None)
    levels = [loss for _, row in events for _, loss in row["losses"]]
    levels += [level for level in (floor, *(row["target"] for _, row in events)) if level]
    low, high = _decades(levels)
    end = max((event.start + _length(event.row) for event in events), default=1)

    def x(iteration: float) -> float:
        return LEFT + (RIGHT - LEFT) * iteration / end

    def y(level: float) -> float:
        height = (math.log10(max(level, SMALLEST)) - low) / (high - low)
        return BOTTOM - (BOTTOM - TOP) * min(max(height, 0), 1)

    parts = [*_grid(low, high, end, x, y)]
    for event in events:
        parts += _curve(event, floor, x, y)
    parts += _soft_curve(events, x, y)
    if floor:
        parts.append(_line(LEFT, RIGHT, y(floor), "floor"))
    parts += _legend(events, floor)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="residual" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">'
        f"<title>mean squared residual over iterations</title><style>{_style()}</style>{''.join(parts)}</svg>\n"
    )


def _events(trace: Sequence[Mapping[str, Any]]) -> Iterator[_Event]:
    start = 0
    for row in trace:
        if row["losses"]:
            yield _Event(start, row)
            start += _length(row)


def _length(row: Mapping[str, Any]) -> int:
    return max(row["iterations"], 1)


def _decades(levels: Sequence[float]) -> tuple[float, float]:
    """Return the axis's ends as exponents of ten: decades, or parts of one where all levels are within it."""
    exponents = [math.log10(max(level, SMALLEST)) for level in levels if math.isfinite(level)] or [-2.0, 0.0]
    low, high = min(exponents), max(exponents)
    if high - low > 1:
        return math.floor(low), max(math.ceil(high), math.floor(low) + 1)
    return low - 0.1, high + 0.1


def _ticks(low: float, high: float) -> Iterator[float]:
    steps = (1,) if high - low >= 2 else (1, 2, 5)
    for exponent in range(math.floor(low), math.ceil(high) + 1):
        yield from (step * 10**exponent for step in steps if low <= math.log10(step * 10**exponent) <= high)


def _grid(low: float, high: float, end: int, x: Any, y: Any) -> Iterator[str]:
    for level in _ticks(low, high):
        yield _line(LEFT, RIGHT, y(level), "grid")
        yield _text(LEFT - 8, y(level) + 4, _number(level), "end")
    for quarter in range(5):
        place = x(end * quarter / 4)
        yield _text(place, BOTTOM + 18, str(round(end * quarter / 4)), "middle" if quarter < 4 else "end")
    yield _text((LEFT + RIGHT) / 2, HEIGHT - 6, "iterations of all optimisations", "middle")
    yield _text(LEFT, 14, "mean squared residual", "start")


def _curve(event: _Event, floor: float | None, x: Any, y: Any) -> Iterator[str]:
    start, row = event
    if event.stage == "soft":
        return
    points = [(x(start + iteration), y(loss)) for iteration, loss in row["losses"] if math.isfinite(loss)]
    stop = f", stopped by {row['stop']}" if row["stop"] else ""
    tip = (
        f"step {row['step']}, {row['stage']}: {_length(row)} iterations, "
        f"{_number(row['losses'][0][1])} to {_number(row['losses'][-1][1])}{stop}"
    )
    yield f'<g class="{event.stage}"><title>{escape(tip)}</title>{_polyline(points)}</g>'
    if row["target"] and row["target"] != floor:
        yield _line(x(start), x(start + _length(row)), y(row["target"]), f"target {event.stage}")


def _soft_curve(events: Sequence[_Event], x: Any, y: Any) -> Iterator[str]:
    """One line through all soft steps, each of which has a single residual."""
    levels = [(event.start, event.row["losses"][0][1]) for event in events if event.stage == "soft"]
    points = [(x(start), y(level)) for start, level in levels if math.isfinite(level)]
    if points:
        yield f'<g class="soft"><title>after each soft step</title>{_polyline(points)}</g>'


def _polyline(points: Sequence[tuple[float, float]]) -> str:
    text = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dot = f'<circle cx="{points[0][0]:.1f}" cy="{points[0][1]:.1f}" r="2.5"/>' if len(points) == 1 else ""
    return f'<polyline points="{text}"/>{dot}'


def _line(left: float, right: float, level: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{left:.1f}" x2="{right:.1f}" y1="{level:.1f}" y2="{level:.1f}"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _legend(events: Sequence[_Event], floor: float | None) -> Iterator[str]:
    found = {event.stage for event in events}
    entries = [(stage, label) for stage, label in STAGES.items() if stage in found]
    if any(event.row["target"] and event.row["target"] != floor for event in events):
        entries.append(("target ink", "target"))
    if floor:
        entries.append(("floor", f"noise floor {_number(floor)}"))
    place = LEFT
    for kind, label in entries:
        yield _line(place, place + 20, 26, kind) + _text(place + 25, 30, label, "start")
        place += 42 + 6.6 * len(label)


def _number(level: float) -> str:
    """Two digits, and as few characters as they take: 0.012, 9.4e-6."""
    if not 0 < level < 0.001:
        return format(level, ".2g")
    digits, _, exponent = format(level, ".1e").partition("e")
    return f"{digits.removesuffix('.0')}e{int(exponent)}"


def _style() -> str:
    def both(colours: str) -> Iterator[str]:
        light, dark = colours.split()
        yield light
        yield f"light-dark({light},{dark})"

    def rules(name: str, kind: str) -> str:
        return "".join(f"{name}:{colour};" for colour in both(_COLOURS[kind]))

    lines = [f".residual .{kind}{{{rules('stroke', kind)}}}" for kind in _COLOURS]
    return (
        f".residual{{color-scheme:inherit;font:12px system-ui,sans-serif}}:root.residual{{color-scheme:light dark}}"
        f".residual text{{{rules('fill', 'ink')}}}.residual polyline,.residual line{{fill:none;stroke-width:1.5}}"
        ".residual .grid{stroke-width:1}.residual .floor{stroke-dasharray:7 4}.residual .target{stroke-dasharray:1 3}"
        ".residual circle{stroke-width:1;fill:none}" + "".join(lines)
    )
