"""The report page: parsed, its links, pictures and numbers read back."""

import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from functa.report import report
from functa.report.charts import Series

VOID = {"meta", "link", "img", "br", "wbr"}
ADDRESSES = {"src", "href", "data", "action", "poster", "srcset", "xlink:href", "background"}
SECTIONS = [
    *("results", "reconstructions", "distribution", "latents", "scales", "inner-steps", "curves"),
    *("confusion", "configuration", "environment"),
]


class Page(HTMLParser):
    """Checks that every element is closed, and collects what the tests look at."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.texts: dict[str, str] = {}
        self.elements: list[tuple[str, dict]] = []
        self.section = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.elements.append((tag, attributes))
        if tag == "section":
            self.section = attributes["id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag == "section":
            self.section = ""

    def handle_data(self, text):
        if "style" not in self.open:
            self.texts[self.section] = self.texts.get(self.section, "") + " " + text

    def of(self, tag, **wanted):
        return [
            attributes
            for name, attributes in self.elements
            if name == tag and wanted.items() <= attributes.items()
        ]

    def images(self, alt):
        """Pictures whose description begins so, decoded."""
        found = []
        for attributes in self.of("img"):
            if attributes["alt"].startswith(alt):
                kind, data = attributes["src"].split(",")
                assert kind == "data:image/png;base64"
                found.append(np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))))
        return found


CONFIG = {
    "name": "an_experiment:8x8x3",
    "seed": 7,
    "data": {"image_shape": [8, 8, 3], "name": "<script>alert(1)</script>"},
    "field": {"latent_shape": [2, 2, 5], "w0": 10.0, "map": {"kind": "linear"}},
    "stages": ["meta_learn", "encode"],
}
ENVIRONMENT = {"commit": "abc1234", "packages": {"jax": "0.10.2"}, "devices": "cpu x1"}
METRICS = {
    "meta_learn": {"psnr": 36.043, "pca_psnr": 34.79, "seconds": 173.42, "device": "cpu x1"},
    "encode": {
        "examples": 60000,
        "latent_bytes": 2048,
        "bytes_per_example": 2196.0,
        "seconds": 30.0,
        "device": "cpu x1",
    },
    "classify": {"accuracy": 0.98312, "accuracy_standard_error": 0.0013, "mystery": "as it is"},
}
CURVES = {
    "loss": [[k, 10.0 ** (-k / 10)] for k in range(0, 60, 10)],
    "psnr": [[k, 20.0 + k] for k in range(0, 60, 10)],
    "validation_psnr": [[25, 31.25], [50, 36.5]],
    "inner_lr_min": [[0, 0.5]],
    "inner_lr_max": [[0, 2.0]],
    "nothing": [],
}


def field_arrays(channels=3, grid=(2, 2), side=8, seed=0):
    rng = np.random.default_rng(seed)
    originals = rng.random((4, side, side, channels)).astype(np.float32)
    few = originals[:2]
    return {
        "originals": originals,
        "reconstructions": np.clip(originals + np.float32(0.01), 0, 1),
        "psnr": rng.normal(36, 2, 50).astype(np.float32),
        "pca_psnr": rng.normal(34, 2, 50).astype(np.float32),
        "latents": rng.normal(size=(4, *grid, 5)).astype(np.float32),
        "decoded_1x": few,
        "decoded_4x": np.repeat(np.repeat(few, 4, 1), 4, 2),
        "decoded_16x": np.repeat(np.repeat(few, 16, 1), 16, 2),
        "inner_steps": np.stack([few * 0, few * np.float32(0.5), few], axis=1),
    }


def label_arrays(k=3):
    confusion = np.full((k, k), 2)
    np.fill_diagonal(confusion, 96)
    confusion[1, 0] = 1204
    return {"confusion": confusion, "class_names": np.array([f"class {a}" for a in range(k)])}


def write(folder, fields=None, labels=None):
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "environment.json").write_text(json.dumps(ENVIRONMENT))
    for stage, metrics in METRICS.items():
        (folder / stage).mkdir()
        (folder / stage / "metrics.json").write_text(json.dumps(metrics))
    (folder / "meta_learn" / "curves.json").write_text(json.dumps(CURVES))
    np.savez(folder / "meta_learn" / "report.npz", **(fields or field_arrays()))
    np.savez(folder / "classify" / "report.npz", **(labels or label_arrays()))


def page_of(folder):
    path = report.write_report(folder)
    assert str(path) == str(folder / "report.html")
    assert not [one.name for one in folder.iterdir() if "partial" in one.name]
    return Page(path.read_text())


@pytest.fixture
def page(tmp_path):
    write(tmp_path)
    return page_of(tmp_path)


def test_all_sections_in_order_and_linked(page):
    assert [attributes["id"] for attributes in page.of("section")] == SECTIONS
    assert [a["href"] for a in page.of("a")] == [f"#{name}" for name in SECTIONS]


def test_nothing_is_loaded_from_elsewhere_and_nothing_runs(page, tmp_path):
    for tag, attributes in page.elements:
        assert tag not in ("script", "iframe", "object", "embed", "base", "form")
        for name, value in attributes.items():
            assert not name.startswith("on")
            assert "url(" not in (value or "")
            if name in ADDRESSES:
                assert value.startswith(("#", "data:")), (tag, name, value)
    text = (tmp_path / "report.html").read_text()
    (style,) = re.findall(r"<style>(.*?)</style>", text, re.S)
    assert "url(" not in style
    assert "@import" not in style
    assert "http" not in text
    assert "prefers-color-scheme: dark" in style
    assert page.of("meta", name="viewport")


def test_a_text_of_the_config_is_text(page):
    assert "<script>alert(1)</script>" in page.texts["configuration"]


def test_results_have_units_meanings_time_and_hardware(page):
    text = page.texts["results"]
    for part in ("36.04 dB mean over all", "34.79 dB", "60,000", "2,196 bytes", "98.31 %"):
        assert part in re.sub(r"\s+", " ", text)
    assert "2.9 min on cpu x1" in text
    assert "mystery" in text
    assert "as it is" in text
    head = page.texts[""]
    for part in ("36.04", "PCA: 34.79", "98.31", "± 0.13", "2,048", "3.4", "min", "cpu x1"):
        assert part in head
    assert "8 × 8 × 3" in head
    assert "2 × 2 × 5" in head
    assert "20 numbers" in head


@pytest.mark.parametrize("channels", [1, 3])
def test_reconstructions_beside_originals_with_their_psnr(tmp_path, channels):
    fields = field_arrays(channels)
    fields["reconstructions"][3] = fields["originals"][3]
    fields["reconstructions"][2] = fields["originals"][2] + np.float32(0.1)
    write(tmp_path, fields)
    page = page_of(tmp_path)
    expected = np.rint(fields["originals"] * 255).astype(np.uint8)
    expected = expected[..., 0] if channels == 1 else expected
    originals = page.images("original ")
    np.testing.assert_array_equal(originals[:4], expected)
    assert len(page.images("reconstruction ")) == 4
    told = re.findall(r"([\d.]+) dB", page.texts["reconstructions"])
    errors = np.square(fields["reconstructions"] - fields["originals"]).mean((1, 2, 3))
    assert told == [f"{-10 * np.log10(max(error, 1e-10)):.2f}" for error in errors]
    assert told[2:] == ["20.00", "100.00"]
    errors = page.images("error of reconstruction ")
    assert np.all(errors[2][..., 3] == 255)  # 0.1 is full colour
    assert not errors[3][..., 3].any()


def test_distribution_tells_the_means_and_who_is_above(tmp_path):
    fields = field_arrays()
    write(tmp_path, fields)
    text = page_of(tmp_path).texts["distribution"]
    psnr, pca = fields["psnr"], fields["pca_psnr"]
    assert f"functa, mean {psnr.mean():.2f} dB" in text
    assert f"PCA, mean {pca.mean():.2f} dB" in text
    assert f"functa less PCA, mean {(psnr - pca).mean():.2f} dB" in text
    assert f"{np.mean(psnr > pca):.1%} of the images" in text
    assert f"from {psnr.min():.2f} to {psnr.max():.2f} dB" in text


def test_latents_are_a_picture_a_channel(page):
    fields = field_arrays()
    pictures = page.images("channel ")
    assert len(pictures) == 4 * 5
    assert all(picture.shape == (2, 2, 4) for picture in pictures)
    values = fields["latents"]
    limits = np.abs(values).max((0, 1, 2))
    alpha = np.sqrt(np.abs(values) / limits) * 255
    drawn = np.stack(pictures).reshape(4, 5, 2, 2, 4)[..., 3].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(drawn, alpha, atol=1)


def test_latents_of_one_cell_are_rows_of_numbers(tmp_path):
    fields = field_arrays()
    fields["latents"] = np.ones((2, 1, 1, 100), np.float32)
    write(tmp_path, fields)
    page = page_of(tmp_path)
    pictures = page.images("channel ")
    assert [picture.shape for picture in pictures] == [(2, 64, 4)] * 2
    assert (pictures[0][..., 3] == 255).sum() == 100
    assert "1 × 1 × 100 = 100 numbers" in page.texts["latents"]


def test_scales_tell_their_pixels_and_are_not_larger_than_needed(tmp_path):
    fields = field_arrays()
    fields["decoded_16x"] = np.zeros((2, 2048, 1024, 1), np.float32)
    write(tmp_path, fields)
    page = page_of(tmp_path)
    text = page.texts["scales"]
    for part in ("1×: 8 × 8 pixels", "4×: 32 × 32 pixels", "16×: 2048 × 1024 pixels"):
        assert text.count(part) == 2
    assert "shown at 1024 × 512" in text
    assert page.images("16×")[0].shape == (1024, 512)
    assert len(page.images("1×")) == 2


def test_film_strip_tells_the_psnr_of_every_step(page):
    text = page.texts["inner-steps"]
    few = field_arrays()["originals"][:2]
    for image in few:
        for frame, name in ((image * 0, "start"), (image / 2, "step 1")):
            psnr = -10 * np.log10(np.square(frame - image).mean())
            assert f"{name}, {psnr:.2f} dB" in text
    assert text.count("step 2, 100.00 dB") == 2
    assert "2 gradient steps" in text
    assert len(page.images("step ")) == 4


def test_curves_share_charts_and_tell_their_last_value(page):
    text = page.texts["curves"]
    assert "PSNR, dB" in text
    for part in ("train: 70", "validation: 36.5", "PCA: 34.79", "min: 0.5", "max: 2"):
        assert part in text
    assert "nothing" not in text
    assert len(page.of("svg")) == 2 + 3  # two histograms; psnr, loss, inner rates


def test_group_curves():
    groups = report.group_curves(
        {
            "steps_per_second": [[1, 2.0]],
            "inner_loss_0": [[1, 0.5], [2, 0.25]],
            "inner_loss_10": [[1, 0.1]],
            "validation/loss": [[2, 3.0]],
            "loss": [[1, 4.0]],
            "test_loss": [[2, 5.0]],
            "empty": [],
        }
    )
    assert list(groups) == ["loss", "inner_loss", "steps_per_second"]
    assert groups["loss"] == [
        Series("validation", (2,), (3.0,)),
        Series("train", (1,), (4.0,)),
        Series("test", (2,), (5.0,)),
    ]
    assert groups["inner_loss"] == [Series("0", (1, 2), (0.5, 0.25)), Series("10", (1,), (0.1,))]
    assert groups["steps_per_second"] == [Series("", (1,), (2.0,))]


def test_confusion_has_all_numbers_and_names_the_worst(page):
    text = re.sub(r"\s+", " ", page.texts["confusion"])
    assert "288 of 1,502 test examples right" in text
    assert "class 0 96 2 2 96.0%" in text
    assert "class 1 1204 96 2 7.4%" in text
    assert "Most frequent: class 1 taken for class 0: 1,204 (92.5%)" in text
    assert text.count("taken for") == 5
    cells = [a for a in page.of("td") if "--a" in a.get("style", "")]
    assert len(cells) == 9
    assert cells[0]["style"] == f"--a:{np.sqrt(0.96):.2f}"
    assert "right" in cells[0]["class"].split()
    assert "wrong" in cells[1]["class"].split()


def test_confusion_of_a_perfect_classifier_without_names(tmp_path):
    write(tmp_path, labels={"confusion": np.diag([5, 0])})
    text = re.sub(r"\s+", " ", page_of(tmp_path).texts["confusion"])
    assert "5 of 5 test examples right" in text
    assert "Most frequent" not in text
    assert "0 5 0 100.0%" in text


def test_a_large_confusion_matrix_is_a_picture(tmp_path):
    write(tmp_path, labels={"confusion": np.eye(40, dtype=np.int64) * 3})
    page = page_of(tmp_path)
    (picture,) = page.images("confusion matrix")
    assert picture.shape == (40, 40, 4)
    np.testing.assert_array_equal(picture[..., 3], np.eye(40) * 255)


def test_trees_fold_and_show_every_leaf(page):
    text = re.sub(r"\s+", " ", page.texts["configuration"])
    for part in ("seed 7", "image_shape 8 × 8 × 3", "w0 10.0", "kind linear"):
        assert part in text
    assert "stages meta_learn, encode" in text
    assert len(page.of("details")) == 4  # data, field, field.map; packages
    assert "jax 0.10.2" in re.sub(r"\s+", " ", page.texts["environment"])


def test_an_empty_run_has_a_page(tmp_path):
    page = page_of(tmp_path)
    assert page.of("section") == []
    assert tmp_path.name in page.texts[""]


@pytest.mark.parametrize(
    ("absent", "gone"),
    [
        ("config.json", {"configuration"}),
        ("environment.json", {"environment"}),
        ("meta_learn/curves.json", {"curves"}),
        ("meta_learn/metrics.json", set()),
        ("classify/report.npz", {"confusion"}),
        (
            "meta_learn/report.npz",
            {"reconstructions", "distribution", "latents", "scales", "inner-steps"},
        ),
    ],
)
def test_a_section_without_its_file_is_left_out(tmp_path, absent, gone):
    write(tmp_path)
    (tmp_path / absent).unlink()
    found = [attributes["id"] for attributes in page_of(tmp_path).of("section")]
    assert found == [name for name in SECTIONS if name not in gone]


@pytest.mark.parametrize("name", sorted(field_arrays()))
def test_any_array_may_be_absent(tmp_path, name):
    fields = field_arrays()
    del fields[name]
    write(tmp_path, fields)
    gone = {
        "originals": "reconstructions",
        "reconstructions": "reconstructions",
        "psnr": "distribution",
        "latents": "latents",
        "inner_steps": "inner-steps",
    }.get(name)
    found = [attributes["id"] for attributes in page_of(tmp_path).of("section")]
    assert found == [section for section in SECTIONS if section != gone]


def test_damaged_files_are_named(tmp_path):
    write(tmp_path)
    path = tmp_path / "meta_learn" / "report.npz"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"meta_learn/report\.npz is damaged"):
        report.write_report(tmp_path)
    path.unlink()
    (tmp_path / "meta_learn" / "curves.json").write_text("{")
    with pytest.raises(ValueError, match=r"meta_learn/curves\.json is damaged"):
        report.write_report(tmp_path)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        (
            "reconstructions",
            (4, 8, 8, 1),
            r"reconstructions \(4, 8, 8, 1\) of originals \(4, 8, 8, 3\)",
        ),
        ("inner_steps", (5, 3, 8, 8, 3), "inner_steps of 5 images, but only 4 originals"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path, name, shape, message):
    write(tmp_path, field_arrays() | {name: np.zeros(shape, np.float32)})
    with pytest.raises(ValueError, match=message):
        report.write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_a_confusion_matrix_that_does_not_fit_its_names_is_refused(tmp_path):
    write(tmp_path, labels=label_arrays() | {"class_names": np.array(["a"])})
    with pytest.raises(ValueError, match=r"confusion \(3, 3\), but 1 class names"):
        report.write_report(tmp_path)
