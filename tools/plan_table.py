"""The plan as a person reads it: what is assumed, and a table with a column a stage."""

from collections.abc import Callable
from typing import Any

from functa.plan.costs import HOUR, Stage
from functa.plan.plan import Planner


def lines(planner: Planner, stages: list[Stage], told: dict[str, Any]) -> list[str]:
    """Lines of text; the table is Markdown."""
    cluster, assumed, chip = planner.cluster, planner.assumptions, planner.cluster.chip
    splits = ", ".join(f"{number:,} {split}" for split, number in planner.splits.items())
    return [
        f"{planner.config.name}: {splits} images",
        f"{cluster.name}: {cluster.devices} devices on {cluster.hosts} hosts; a device {chip.peak / 1e12:.4g} TFLOP/s"
        f" ({chip.peak_highest / 1e12:.3g} at highest precision), {size(chip.memory)} at {size(chip.bandwidth)}/s;"
        f" it sends {size(cluster.bandwidth)}/s over {cluster.hops} hops of {seconds(chip.hop_seconds)}"
        f" ({chip.source})",
        f"assumed: {assumed.utilisation:.0%} of the peak in products; a host decodes"
        f" {assumed.decode_rate:,.0f} images/s, and reads and writes {size(assumed.storage_bandwidth)}/s; an"
        f" image is stored in {size(assumed.image_bytes)}",
        "",
        *table(stages, chip.memory),
        "",
        f"projected: {seconds(HOUR * told['hours'])}, {told['device_hours']:,.3g} device hours, "
        f"{size(told['storage_bytes'])} left",
    ]


def size(count: float) -> str:
    """1,234,567 -> 1.23 MB."""
    return _scaled(count, {"TB": 1e12, "GB": 1e9, "MB": 1e6, "kB": 1e3, "B": 1})


def number(count: float) -> str:
    """1,234,567 -> 1.23 M."""
    return _scaled(count, {"E": 1e18, "P": 1e15, "T": 1e12, "G": 1e9, "M": 1e6, "k": 1e3, "": 1})


def seconds(value: float) -> str:
    """5,400 -> 1.5 h."""
    return _scaled(value, {"h": HOUR, "min": 60, "s": 1, "ms": 1e-3, "us": 1e-6})


def _scaled(value: float, units: dict[str, float]) -> str:
    """Three digits in the largest unit that is not larger."""
    unit, factor = next(((u, f) for u, f in units.items() if value >= f), list(units.items())[-1])
    return f"{value / factor:.3g} {unit}".rstrip() if value else ""


def table(stages: list[Stage], memory: float) -> list[str]:
    """
    Args:
      memory: bytes of a device.
    """

    def of_memory(stage: Stage) -> str:
        if stage.program is None:
            return "not compiled"
        used = stage.program.memory
        told = f"{size(used['argument_bytes'])} + {size(used['temporary_bytes'])}"
        needed = stage.program.peak_bytes + stage.kept_bytes.get("device", 0)
        return told if needed <= memory else f"{told}: TOO MUCH"

    def part(name: str) -> Callable[[Stage], str]:
        return lambda stage: seconds(stage.seconds[name])

    rows: dict[str, Callable[[Stage], str]] = {
        "examples": lambda s: f"{s.examples:,}",
        "steps x batch": lambda s: f"{s.steps:,} x {s.batch_size:,}",
        "parameters": lambda s: f"{s.parameters:,}" if s.parameters else "",
        "multiply-adds: of an example": lambda s: number(s.cost.each),
        "of a step, on every device": lambda s: number(s.cost.once),
        "of an update, on every device": lambda s: number(s.optimizer),
        "operations of all steps": lambda s: number(s.operations),
        "device: state": lambda s: size(s.state_bytes),
        "device: arguments + temporaries": of_memory,
        "device: its memory moves that of a step in": lambda s: seconds(s.traffic_seconds),
        "device: sends in a step": lambda s: size(s.sent_bytes),
        "host: reads and writes in a step": lambda s: size(s.host_bytes),
        "host: a second": lambda s: size(s.host_bytes / s.step_seconds),
        "step: products": part("products"),
        "step: update": part("optimizer"),
        "step: all-reduce": part("all-reduce"),
        "step: decoding": part("input"),
        "step: storage": part("storage"),
        "**step**": lambda s: f"**{seconds(s.step_seconds)}**",
        "all steps": lambda s: seconds(s.steps * s.step_seconds),
        "beside them": lambda s: ", ".join(
            f"{name} {seconds(HOUR * hours)}" for name, hours in s.extra_hours.items() if hours
        ),
        "**stage**": lambda s: f"**{seconds(HOUR * s.hours)}**",
        "cached on every host or device": lambda s: ", ".join(
            f"{place} {size(kept)}" for place, kept in s.kept_bytes.items()
        ),
        "all hosts read": lambda s: size(s.read_bytes),
        "leaves": lambda s: size(s.storage_bytes),
        "shards": lambda s: f"{s.shards:,}" if s.shards else "",
        "what limits": lambda s: s.limit,
    }
    return [
        "| projected | " + " | ".join(stage.name for stage in stages) + " |",
        "|---|" + "---|" * len(stages),
        *(f"| {name} | " + " | ".join(map(tell, stages)) + " |" for name, tell in rows.items()),
    ]
