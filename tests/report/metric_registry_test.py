"""The summary of a run and its table."""

import json

import pytest

from functa.report import metric_registry

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
    (tmp_path / "functaset").mkdir()  # a folder that is no stage
    return tmp_path


def test_summary_holds_all_stages_in_order(workdir):
    summary = metric_registry.write_summary(workdir)
    assert list(summary) == ["meta_learn", "encode", "classify", "zoo"]
    assert summary == json.loads((workdir / "summary.json").read_text())
    assert summary["classify"] == METRICS["classify"]


def test_summary_of_an_empty_run(tmp_path):
    assert metric_registry.write_summary(tmp_path) == {}
    assert metric_registry.results_table({}).startswith("stage")


def test_damaged_metrics_are_named(workdir):
    (workdir / "encode" / "metrics.json").write_text('{"psnr": 3')
    with pytest.raises(ValueError, match=r"encode/metrics\.json is damaged"):
        metric_registry.write_summary(workdir)


def test_table_is_aligned_and_knows_units():
    lines = metric_registry.results_table(METRICS).splitlines()
    assert lines[0].split() == ["stage", "measure", "value", "unit"]
    rows = [line.split() for line in lines[2:]]
    assert rows[0] == ["meta_learn", "psnr", "36.04", "dB"]
    assert rows[1] == ["pca_psnr", "34.79", "dB"]
    assert rows[2] == ["seconds", "173.4", "s"]
    assert ["accuracy", "98.31", "%"] in [row[-3:] for row in rows]
    assert ["steps", "12,345"] in rows
    assert ["new_key", "2.5"] in rows
    assert ["list", "[1,", "2]"] in rows
    assert ["encode", "bytes_per_example", "2,196", "bytes"] in rows
    end = lines[0].index("value") + len("value")
    for line in lines[2:]:  # values end where the heading does
        assert line[end - 1] != " "
        assert line[end : end + 2].strip() == ""
    assert not any(line.endswith(" ") for line in lines)


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("psnr", float("inf"), "inf"),
        ("psnr", float("nan"), "nan"),
        ("accuracy", 1, "100.00"),
        ("steps", 0, "0"),
        ("what", True, "true"),
        ("what", None, "null"),
        ("what", {"a": 1.5}, '{"a": 1.5}'),
        ("device", "NVIDIA H100 x8", "NVIDIA H100 x8"),
    ],
)
def test_shown(key, value, text):
    assert metric_registry.shown(key, value) == text
