"""Formatting of metrics, the summary of a run, and its table."""

import json
import math

import pytest

from functa.report import metric_registry
from functa.runtime.errors import DamagedFileError

METRICS: dict[str, dict] = {
    "meta_learn": {"seconds": 173.42, "psnr": 36.043, "pca_psnr": 34.79, "device": "cpu x1"},
    "classify": {"accuracy": 0.98312, "loss": 0.07, "steps": 12345, "new_key": 2.5, "list": [1, 2]},
    "encode": {"bytes_per_example": 2196},
}


@pytest.fixture
def workdir(tmp_path):
    for stage, metrics in {"zoo": {"a": 1}, **METRICS}.items():
        (tmp_path / stage).mkdir()
        (tmp_path / stage / "metrics.json").write_text(json.dumps(metrics))
    (tmp_path / "functaset").mkdir()  # a directory without metrics
    return tmp_path


def test_summary_holds_all_stages_ordered_results(workdir):
    summary = metric_registry.write_summary(workdir)
    assert list(summary) == ["meta_learn", "encode", "classify", "zoo"]
    assert summary == json.loads((workdir / "summary.json").read_text())
    assert summary["classify"] == METRICS["classify"]


def test_damaged_metrics_are_named(workdir):
    (workdir / "encode" / "metrics.json").write_text('{"psnr": 3')
    with pytest.raises(DamagedFileError, match=r"encode/metrics\.json"):
        metric_registry.write_summary(workdir)


def test_ordered_hides_digests():
    metrics = {"other": 1, "a_digest": "sha256:0", "loss": 2, "psnr": 3}
    assert metric_registry.ordered(metrics) == [("psnr", 3), ("loss", 2), ("other", 1)]


def test_table_is_aligned_and_has_units():
    lines = metric_registry.results_table(METRICS).splitlines()
    rows = [line.split() for line in lines[2:]]
    assert rows[0] == ["meta_learn", "psnr", "36.04", "dB"]
    assert rows[1] == ["pca_psnr", "34.79", "dB"]
    assert rows[2] == ["seconds", "173.4", "s"]
    assert ["accuracy", "98.31", "%"] in [row[-3:] for row in rows]
    assert ["encode", "bytes_per_example", "2,196", "bytes"] in rows
    end = lines[0].index("value") + len("value")
    for line in lines[2:]:  # values are right-aligned with their header
        assert line[end - 1] != " "
        assert line[end : end + 2].strip() == ""


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("psnr", math.inf, "inf"),
        ("psnr", 36.045001, "36.05"),
        ("accuracy", 1, "100.00"),
        ("r2", 0.4721, "47.21"),
        ("baseline_loss", 0.98765, "0.9877"),
        ("unknown", True, "true"),
        ("unknown", None, "null"),
        ("unknown", {"a": 1.5}, '{"a": 1.5}'),
        ("device", "NVIDIA H100 x8", "NVIDIA H100 x8"),
    ],
)
def test_format_value(key, value, text):
    assert metric_registry.format_value(key, value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1234567, "1,234,567"),
        (36.04321, "36.04"),
        (-0.5, "-0.5"),
        (0.30000000000000004, "0.3"),
        (0.0008, "0.0008"),
        (0.000012, "1.2e-5"),
        (2.5e12, "2.5e12"),
        (100.0, "100"),
        (math.nan, "nan"),
        (-math.inf, "-inf"),
    ],
)
def test_format_number(value, text):
    assert metric_registry.format_number(value) == text
