"""The rate-distortion chart of a table."""

from xml.etree import ElementTree

from functa.evaluation.analysis.table import Table
from functa.report import rate_distortion


def test_curves_are_pareto_fronts():
    def row(method, size, psnr, estimate=None):
        return {"method": method, "bytes": size, "psnr": psnr, "entropy_bytes": estimate}

    rows = [row("functa", 20.0, 30.0), row("functa", 10.0, 25.0, 9.0), row("functa", 40.0, 30.0)]
    table = Table("Curve", "", 1, (), [*rows, row("<JPEG>", 30.0, 20.0)])
    assert rate_distortion.curves(table) == [
        ("functa", [10.0, 20.0], [25.0, 30.0]),
        ("functa, entropy estimate", [9.0], [25.0]),
        ("<JPEG>", [30.0], [20.0]),
    ]
    root = ElementTree.fromstring(rate_distortion.rate_distortion_chart(table))
    texts = [element.text for element in root.iter() if element.tag.endswith("text")]
    assert {"functa", "functa, entropy estimate", "<JPEG>"} <= set(texts)
