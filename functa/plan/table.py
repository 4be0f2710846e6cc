"""Markdown tables of plans: the stages of one cluster, and several clusters side by side."""

from collections.abc import Callable, Sequence

from functa.plan.cost import StagePlan
from functa.plan.hardware import Cluster
from functa.plan.stages import Planner

_HOUR = 3600.0


def preface(planners: Sequence[Planner]) -> list[str]:
    """Lines that state the images, the hardware and the assumptions of the plans."""
    splits = ", ".join(f"{count:,} {split}" for split, count in planners[0].splits.items())
    lines = [f"{planners[0].config.name}: {splits} images"]
    for planner in planners:
        cluster, chip = planner.cluster, planner.cluster.chip
        lines.append(
            f"{cluster.name}: {cluster.devices} devices on {cluster.hosts} hosts; a device does "
            f"{chip.peak / 1e12:.4g} TFLOP/s ({chip.peak_highest / 1e12:.3g} at highest precision), has "
            f"{size(chip.memory)} at {size(chip.bandwidth)}/s and sends {size(cluster.bandwidth)}/s over "
            f"{cluster.hops} hops of {seconds(chip.hop_seconds)} ({chip.source}); assumed: "
            f"{planner.assumptions.utilization:.0%} of the peak in matrix products"
        )
    assumed = planners[0].assumptions
    lines.append(
        f"assumed: a host decodes {assumed.decode_rate:,.0f} images/s and exchanges "
        f"{size(assumed.storage_bandwidth)}/s with storage; a stored image has {size(assumed.image_bytes)}"
    )
    return lines


def stage_table(cluster: Cluster, stages: Sequence[StagePlan]) -> list[str]:
    """One column per stage, and a line with the totals."""
    total = sum(stage.seconds for stage in stages)

    def memory(stage: StagePlan) -> str:
        if stage.analysis is None:
            return ""
        found = stage.analysis
        text = f"{size(found.argument_bytes)} + {size(found.temporary_bytes)}"
        return text if fits(stage, cluster) else f"{text}: TOO MUCH"

    def traffic(stage: StagePlan) -> str:
        return (
            seconds(stage.analysis.accessed_bytes / cluster.chip.bandwidth)
            if stage.analysis
            else ""
        )

    def part(name: str) -> Callable[[StagePlan], str]:
        return lambda stage: seconds(stage.step_parts[name])

    rows: dict[str, Callable[[StagePlan], str]] = {
        "examples": lambda s: f"{s.examples:,}",
        "steps x batch": lambda s: f"{s.steps:,} x {s.batch_size:,}",
        "parameters": lambda s: f"{s.parameters:,}" if s.parameters else "",
        "device: multiply-adds per step": lambda s: number(s.work.multiply_adds),
        "device: at highest precision": lambda s: number(s.work.multiply_adds_highest),
        "operations of all devices and steps": lambda s: number(
            2.0 * s.steps * cluster.devices * s.work.all_multiply_adds
        ),
        "device: state": lambda s: size(s.state_bytes),
        "device: arguments + temporaries": memory,
        "device: memory traffic of a step": traffic,
        "device: sends per step": lambda s: size(s.work.sent_bytes),
        "host: storage traffic per step": lambda s: size(s.host_bytes),
        "step: products": part("products"),
        "step: products at highest precision": part("products at highest precision"),
        "step: collectives": part("collectives"),
        "step: decoding": part("decoding"),
        "step: storage": part("storage"),
        "**step**": lambda s: f"**{seconds(s.step_seconds)}**",
        "step, measured here": lambda s: seconds(s.measured_seconds or 0.0),
        "all steps": lambda s: seconds(s.steps * s.step_seconds),
        "beside the steps": lambda s: ", ".join(
            f"{name} {seconds(value)}" for name, value in s.other_parts.items() if value
        ),
        "**stage**": lambda s: f"**{seconds(s.seconds)}**",
        "cached on every host or device": lambda s: ", ".join(
            f"{place} {size(value)}" for place, value in s.cache_bytes.items()
        ),
        "stored": lambda s: size(s.storage_bytes),
        "shards": lambda s: f"{s.shards:,}" if s.shards else "",
        "limited by": lambda s: s.limit,
    }
    cells = {name: [cell(stage) for stage in stages] for name, cell in rows.items()}
    return [
        "| projected | " + " | ".join(stage.name for stage in stages) + " |",
        "|---|" + "---|" * len(stages),
        *(f"| {name} | {' | '.join(row)} |" for name, row in cells.items() if any(row)),
        "",
        f"projected: {seconds(total)}, {total / _HOUR * cluster.devices:,.3g} device hours, "
        f"{size(sum(stage.storage_bytes for stage in stages))} stored",
    ]


def cluster_table(plans: Sequence[tuple[Cluster, Sequence[StagePlan]]]) -> list[str]:
    """One row per cluster, with the time and the limit of every stage."""
    names = [stage.name for stage in plans[0][1]]
    rows = []
    for cluster, stages in plans:
        total = sum(stage.seconds for stage in stages)
        cells = [f"{seconds(stage.seconds)} ({stage.limit})" for stage in stages]
        memory = ""
        if all(stage.analysis for stage in stages):
            fitting = all(fits(stage, cluster) for stage in stages)
            peaks = [stage.analysis.peak_bytes for stage in stages if stage.analysis]
            memory = f"{size(max(peaks))}{'' if fitting else ': TOO MUCH'}"
        cells += [memory, seconds(total), f"{total / _HOUR * cluster.devices:,.3g}"]
        rows.append(f"| {cluster.name} | {cluster.devices} | " + " | ".join(cells) + " |")
    header = ["hardware", "devices", *names, "memory of a device", "total", "device hours"]
    return ["| " + " | ".join(header) + " |", "|---|" + "---|" * (len(header) - 1), *rows]


def fits(stage: StagePlan, cluster: Cluster) -> bool:
    """Whether a compiled step and the cached examples fit the memory of a device."""
    assert stage.analysis is not None
    return stage.analysis.peak_bytes + stage.cache_bytes.get("device", 0) <= cluster.chip.memory


def size(count: float) -> str:
    """1_234_567 -> "1.23 MB"."""
    return _scaled(count, {"TB": 1e12, "GB": 1e9, "MB": 1e6, "kB": 1e3, "B": 1})


def number(count: float) -> str:
    """1_234_567 -> "1.23 M"."""
    return _scaled(count, {"E": 1e18, "P": 1e15, "T": 1e12, "G": 1e9, "M": 1e6, "k": 1e3, "": 1})


def seconds(value: float) -> str:
    """5_400 -> "1.5 h"."""
    return _scaled(value, {"h": _HOUR, "min": 60, "s": 1, "ms": 1e-3, "us": 1e-6})


def _scaled(value: float, units: dict[str, float]) -> str:
    """Three digits in the largest unit that is at most the value; "" for 0."""
    unit, factor = next(((u, f) for u, f in units.items() if value >= f), list(units.items())[-1])
    return f"{value / factor:.3g} {unit}".rstrip() if value else ""
