"""Plans as Markdown tables: the stages of one cluster, or several clusters."""

from collections.abc import Sequence

from functa.plan.cost import StagePlan
from functa.plan.hardware import Cluster
from functa.plan.stages import Planner

_HOUR = 3600.0


def preface(planners: Sequence[Planner]) -> list[str]:
    """Lines with the images, the hardware and the assumptions of the plans."""
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
    columns = [_stage_cells(cluster, stage) for stage in stages]
    rows = [[name, *(column[name] for column in columns)] for name in columns[0]]
    stored = sum(stage.storage_bytes for stage in stages)
    return [
        *_markdown(
            ["projected", *(stage.name for stage in stages)], [r for r in rows if any(r[1:])]
        ),
        "",
        f"projected: {seconds(_total(stages))}, {_device_hours(cluster, stages)} device hours, "
        f"{size(stored)} stored",
    ]


def _stage_cells(cluster: Cluster, stage: StagePlan) -> dict[str, str]:
    """The texts of a stage by row; "" where it has none."""
    analysis, work, parts = stage.analysis, stage.work, stage.step_parts
    memory = traffic = ""
    if analysis:
        memory = f"{size(analysis.argument_bytes)} + {size(analysis.temporary_bytes)}"
        memory += _memory_warning(cluster, [stage])
        traffic = seconds(analysis.accessed_bytes / cluster.chip.bandwidth)
    operations = 2.0 * stage.steps * cluster.devices * work.all_multiply_adds
    others = {name: seconds(value) for name, value in stage.other_parts.items()}
    caches = [f"{place} {size(count)}" for place, count in stage.cache_bytes.items()]
    return {
        "examples": f"{stage.examples:,}",
        "steps x batch": f"{stage.steps:,} x {stage.batch_size:,}",
        "parameters": f"{stage.parameters:,}" if stage.parameters else "",
        "device: multiply-adds per step": number(work.multiply_adds),
        "device: at highest precision": number(work.multiply_adds_highest),
        "operations of all devices and steps": number(operations),
        "device: state": size(stage.state_bytes),
        "device: arguments + temporaries": memory,
        "device: memory traffic of a step": traffic,
        "device: sends per step": size(work.sent_bytes),
        "host: storage traffic per step": size(stage.host_bytes),
        **{f"step: {name}": seconds(value) for name, value in parts.items()},
        "**step**": f"**{seconds(stage.step_seconds)}**",
        "step, measured here": seconds(stage.measured_seconds or 0.0),
        "all steps": seconds(stage.steps * stage.step_seconds),
        "beside the steps": ", ".join(f"{name} {text}" for name, text in others.items() if text),
        "**stage**": f"**{seconds(stage.seconds)}**",
        "cached on every host or device": ", ".join(caches),
        "stored": size(stage.storage_bytes),
        "shards": f"{stage.shards:,}" if stage.shards else "",
        "limited by": stage.limit,
    }


def cluster_table(plans: Sequence[tuple[Cluster, Sequence[StagePlan]]]) -> list[str]:
    """One row per cluster, with the time and the limit of every stage."""
    rows = []
    for cluster, stages in plans:
        peaks = [stage.analysis.peak_bytes for stage in stages if stage.analysis]
        memory = f"{size(max(peaks))}{_memory_warning(cluster, stages)}" if peaks else ""
        times = [f"{seconds(stage.seconds)} ({stage.limit})" for stage in stages]
        total = [seconds(_total(stages)), _device_hours(cluster, stages)]
        rows.append([cluster.name, str(cluster.devices), *times, memory, *total])
    names = [stage.name for stage in plans[0][1]]
    header = ["hardware", "devices", *names, "memory of a device", "total", "device hours"]
    return _markdown(header, rows)


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(row)} |" for row in (header, *rows)]
    return [lines[0], "|---" * len(header) + "|", *lines[1:]]


def _total(stages: Sequence[StagePlan]) -> float:
    return sum(stage.seconds for stage in stages)


def _device_hours(cluster: Cluster, stages: Sequence[StagePlan]) -> str:
    return f"{_total(stages) / _HOUR * cluster.devices:,.3g}"


def _memory_warning(cluster: Cluster, stages: Sequence[StagePlan]) -> str:
    """ ": TOO MUCH" if a compiled step and the cached examples exceed the memory of a device."""
    needed = [
        stage.analysis.peak_bytes + stage.cache_bytes.get("device", 0)
        for stage in stages
        if stage.analysis
    ]
    return ": TOO MUCH" if max(needed) > cluster.chip.memory else ""


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
