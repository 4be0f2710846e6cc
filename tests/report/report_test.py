"""The report page: its sections, links, images and numbers, parsed from the HTML."""

import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from functa.diffusion.inpainter import METHODS
from functa.report import field_sections, report
from functa.report.charts import Series
from functa.runtime import image_io
from functa.runtime.errors import DamagedFileError

VOID = {"meta", "link", "img", "br", "wbr"}
SECTIONS = [
    *("results", "reconstructions", "psnr", "latents", "resolutions", "inner-steps", "training"),
    *("confusion", "samples", "guidance", "sample-resolutions", "inpainting", "nearest"),
    *("configuration", "environment"),
]


class Page(HTMLParser):
    """Elements and texts of a page; fails if an element is not closed.

    Attributes:
      texts: {section id, "" outside of sections: text with single spaces}.
      elements: [(tag, attributes)].
    """

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open_tags: list[str] = []
        self.texts: dict[str, str] = {}
        self.elements: list[tuple[str, dict]] = []
        self.section = ""
        self.feed(text)
        self.close()
        assert not self.open_tags
        self.texts = {name: re.sub(r"\s+", " ", text) for name, text in self.texts.items()}

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.elements.append((tag, attributes))
        if tag == "section":
            self.section = attributes["id"]
        if tag not in VOID:
            self.open_tags.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open_tags.pop() == tag
        if tag == "section":
            self.section = ""

    def handle_data(self, text):
        if "style" not in self.open_tags:
            self.texts[self.section] = self.texts.get(self.section, "") + " " + text

    def find(self, tag):
        """Attributes of the elements with a tag."""
        return [attributes for name, attributes in self.elements if name == tag]

    def images(self, alt):
        """Decoded images whose alternative text starts with `alt`."""
        decoded = []
        for attributes in self.find("img"):
            if attributes["alt"].startswith(alt):
                kind, data = attributes["src"].split(",")
                assert kind == "data:image/png;base64"
                decoded.append(np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))))
        return decoded


CONFIG = {
    "name": "an_experiment:8x8x3,<b>",
    "seed": 7,
    "data": {"image_shape": [8, 8, 3], "name": "<script>alert(1)</script>"},
    "field": {"latent_shape": [2, 2, 5], "w0": 10.0, "map": {"kind": "linear"}},
    "stages": ["meta_learn", "encode"],
}
ENVIRONMENT = {"commit": "abc1234", "packages": {"jax": "0.10.2"}}
TIME = {"seconds": 50.0, "device": "cpu x1"}
METRICS = {
    "meta_learn": {"psnr": 36.043, "pca_psnr": 34.79, "seconds": 153.42, "device": "cpu x1"},
    "encode": {"examples": 60000, "latent_bytes": 2048, "bytes_per_example": 2196.0, **TIME},
    "classify": {"accuracy": 0.98312, "accuracy_standard_error": 0.0013, "new": "text", **TIME},
    "generate": {"label_agreement": 0.875, **TIME},
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
    decoded = originals[:2]
    return {
        "originals": originals,
        "reconstructions": np.clip(originals + np.float32(0.01), 0, 1),
        "psnr": rng.normal(36, 2, 50).astype(np.float32),
        "pca_psnr": rng.normal(34, 2, 50).astype(np.float32),
        "latents": rng.normal(size=(4, *grid, 5)).astype(np.float32),
        "decoded_16x": np.repeat(np.repeat(decoded, 16, 1), 16, 2),
        "decoded_4x": np.repeat(np.repeat(decoded, 4, 1), 4, 2),
        "decoded_1x": decoded,
        "inner_steps": np.stack([decoded * 0, decoded * np.float32(0.5), decoded], axis=1),
    }


def generation_arrays(seed=1):
    rng = np.random.default_rng(seed)

    def images(*shape):
        return rng.random((*shape, 8, 8, 3)).astype(np.float32)

    sweep = {
        "scale": [1.0, 1.5, 3.0],
        "label_agreement": [0.9, 0.95, 1.0],
        "kernel_distance": [0.0123, 0.01, np.nan],
        "standard_error": [0.03, 0.05, np.nan],
    }
    return {
        "samples": images(3, 4),
        "gaussian": images(4),
        "compared": images(5),
        "nearest": images(5),
        "samples_1x": images(2),
        "samples_2x": np.repeat(np.repeat(images(2), 2, 1), 2, 2),
        "inpainting_original": images(2),
        "inpainting_observed": images(2),
        **{f"inpainting_{name}": images(2) for name in METHODS},
        **{f"inpainting_mse_{name}": np.array([0.1, 0.01], np.float32) for name in METHODS},
        **{f"guidance_sweep_{name}": np.array(values) for name, values in sweep.items()},
    }


def label_arrays(k=3):
    confusion = np.full((k, k), 2)
    np.fill_diagonal(confusion, 96)
    confusion[1, 0] = 1204
    return {"confusion": confusion, "class_names": np.array([f"class {a}" for a in range(k)])}


def write_run(folder):
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "environment.json").write_text(json.dumps(ENVIRONMENT))
    for stage, metrics in METRICS.items():
        (folder / stage).mkdir()
        (folder / stage / "metrics.json").write_text(json.dumps(metrics))
    (folder / "meta_learn" / "curves.json").write_text(json.dumps(CURVES))
    np.savez(folder / "meta_learn" / "report.npz", **field_arrays())
    np.savez(folder / "classify" / "report.npz", **label_arrays())
    np.savez(folder / "generate" / "report.npz", **generation_arrays())


def read_page(folder):
    path = report.write_report(folder)
    assert str(path) == str(folder / "report.html")
    assert not list(folder.glob("*partial*"))
    return Page(path.read_text())


def page_of_arrays(folder, stage, arrays):
    """The page of a run that has nothing but the arrays of one stage."""
    (folder / stage).mkdir()
    np.savez(folder / stage / "report.npz", **arrays)
    return read_page(folder)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    write_run(folder)
    return folder


@pytest.fixture(scope="module")
def page(workdir):
    return read_page(workdir)


def test_all_sections_are_present_and_linked(page):
    assert [attributes["id"] for attributes in page.find("section")] == SECTIONS
    assert [a["href"] for a in page.find("a")] == [f"#{name}" for name in SECTIONS]


def test_page_needs_no_script_and_no_other_file(page, workdir):
    for tag, attributes in page.elements:
        assert tag not in ("script", "iframe", "object", "embed", "base", "form")
        for name, value in attributes.items():
            assert not name.startswith("on")
            assert "url(" not in (value or "").replace("url(#", "")
            if name in ("src", "href", "data", "action", "poster", "srcset", "xlink:href"):
                assert value.startswith(("#", "data:")), (tag, name, value)
    assert "@import" not in (workdir / "report.html").read_text()


def test_texts_are_escaped(page):
    assert "<script>alert(1)</script>" in page.texts["configuration"]
    assert "an_experiment: 8x8x3, <b>" in page.texts[""]  # line breaks after punctuation
    assert len(page.find("wbr")) == 2


def test_results_have_units_descriptions_time_and_hardware(page):
    text, header = page.texts["results"], page.texts[""]
    for part in ("36.04 dB", "60,000", "2,196 bytes", "98.31 %", "2.6 min on cpu x1", "new text"):
        assert part in text
    for part in ("34.79", "98.31 %", "0.13", "87.50 %", "2,048 bytes", "5.1 min", "8 × 8 × 3"):
        assert part in header


@pytest.mark.parametrize("channels", [1, 3])
def test_reconstructions_with_originals_and_psnr(tmp_path, channels):
    arrays = field_arrays(channels)
    arrays["reconstructions"][3] = arrays["originals"][3]
    arrays["reconstructions"][2] = arrays["originals"][2] + np.float32(0.1)
    page = page_of_arrays(tmp_path, "meta_learn", arrays)
    expected = np.rint(arrays["originals"] * 255).astype(np.uint8)
    expected = expected[..., 0] if channels == 1 else expected
    np.testing.assert_array_equal(page.images("original ")[:4], expected)
    assert len(page.images("reconstruction ")) == 4
    errors = np.square(arrays["reconstructions"] - arrays["originals"]).mean((1, 2, 3))
    psnr = re.findall(r"([\d.]+) dB", page.texts["reconstructions"])
    assert psnr == [f"{-10 * np.log10(max(error, 1e-10)):.2f}" for error in errors]
    assert psnr[2:] == ["20.00", "100.00"]
    error_maps = page.images("error of reconstruction ")
    assert np.all(error_maps[2][..., 3] == 255)  # an error of 0.1 is opaque
    assert np.all(error_maps[2][..., :3] == image_io.POSITIVE)  # too bright
    assert not error_maps[3][..., 3].any()


def test_psnr_distribution_has_means_and_the_comparison_with_pca(page):
    text, arrays = page.texts["psnr"], field_arrays()
    psnr, pca = arrays["psnr"], arrays["pca_psnr"]
    for mean in (psnr.mean(), pca.mean(), (psnr - pca).mean()):
        assert f"mean {mean:.2f} dB" in text
    for part in (f"{np.mean(psnr > pca):.1%}", f"{psnr.min():.2f}", f"{psnr.max():.2f}"):
        assert part in text


def test_latents_are_one_map_per_channel(page):
    maps = page.images("channel ")
    assert [one.shape for one in maps] == [(2, 2, 4)] * (4 * 5)
    latents = field_arrays()["latents"]
    alpha = np.sqrt(np.abs(latents) / np.abs(latents).max((0, 1, 2))) * 255
    opacity = np.stack(maps).reshape(4, 5, 2, 2, 4)[..., 3].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(opacity, alpha, atol=1)
    assert "2 × 2 × 5 = 20 latents" in page.texts["latents"]


@pytest.mark.parametrize(("side", "shape"), [(1, (1, 2, 64, 4)), (2, (64, 2, 2, 4))])
def test_many_latents(side, shape):
    """Latents of one cell are rows of squares; on a grid, channels after the 64th are hidden."""
    originals = np.zeros((2, 8, 8, 1))
    section = field_sections.latent_maps(np.ones((2, side, side, 100)), originals)
    assert [maps.shape for _, maps in section["images"]] == [shape] * 2
    opaque = section["images"][0][1][..., 3] == 255
    assert opaque.sum() == (100 if side == 1 else 64 * side * side)
    assert section["hidden"] == (side > 1)


def test_resolutions_are_in_order_and_large_images_are_shrunk(tmp_path):
    large = np.zeros((2, 2048, 1024, 1), np.float32)
    page = page_of_arrays(tmp_path, "meta_learn", field_arrays() | {"decoded_16x": large})
    row = "1×: 8 × 8 pixels 4×: 32 × 32 pixels 16×: 2048 × 1024 pixels, displayed at 1024 × 512"
    assert page.texts["resolutions"].count(row) == 2
    assert page.images("16×")[0].shape == (1024, 512)


def test_inner_steps_have_their_psnr(page):
    text = page.texts["inner-steps"]
    for image in field_arrays()["originals"][:2]:
        for step, decoded in enumerate((image * 0, image / 2)):
            psnr = -10 * np.log10(np.square(decoded - image).mean())
            assert f"step {step}, {psnr:.2f} dB" in text
    assert text.count("step 2, 100.00 dB original") == 2
    assert len(page.images("step ")) == 6


def test_training_charts_have_the_last_values_and_the_baseline(page, workdir):
    text = page.texts["training"]
    for part in ("PSNR, dB", "train: 70", "validation: 36.5", "min: 0.5", "max: 2"):
        assert part in text
    psnr, *others = report.training_charts(workdir, METRICS)["meta_learn"]
    assert "PCA: 34.79" in psnr
    assert not any("PCA" in chart for chart in others)
    assert "nothing" not in text
    assert len(page.find("svg")) == 2 + 3 + 2  # histograms; psnr, loss, inner_lr; guidance


def test_group_curves():
    points = {
        "steps_per_second": [[1, 2.0]],
        "inner_loss_0": [[1, 0.5], [2, 0.25]],
        "inner_loss_10": [[1, 0.1]],
        "validation/loss": [[2, 3.0]],
        "loss": [[1, 4.0]],
        "psnr_of_mean_mse": [[2, 5.0]],
        "empty": [],
    }
    assert list(report.group_curves(points).items()) == [
        ("psnr_of_mean_mse", [Series("5", (2,), (5.0,))]),
        ("loss", [Series("validation: 3", (2,), (3.0,)), Series("train: 4", (1,), (4.0,))]),
        ("inner_loss", [Series("0: 0.25", (1, 2), (0.5, 0.25)), Series("10: 0.1", (1,), (0.1,))]),
        ("steps_per_second", [Series("2", (1,), (2.0,))]),
    ]


def test_confusion_matrix_has_all_counts_and_the_most_frequent_errors(page):
    text = page.texts["confusion"]
    assert "class 0 96 2 2 96.0%" in text
    assert "class 1 1204 96 2 7.4%" in text
    errors = re.findall(r"class (\d) classified as class (\d): ([\d,]+)", text)
    assert errors[:2] == [("1", "0", "1,204"), ("0", "1", "2")]
    assert len(errors) == 5
    cells = [a for a in page.find("td") if "--a" in a.get("style", "")]
    assert len(cells) == 9
    assert cells[0]["style"] == f"--a:{np.sqrt(0.96):.2f}"
    assert "right" in cells[0]["class"].split()
    assert "wrong" in cells[1]["class"].split()


def test_a_large_confusion_matrix_is_an_image(tmp_path):
    arrays = {"confusion": np.eye(40, dtype=np.int64) * 3, "class_names": np.arange(40)}
    (image,) = page_of_arrays(tmp_path, "classify", arrays).images("confusion matrix")
    assert image.shape == (40, 40, 4)
    np.testing.assert_array_equal(image[..., 3], np.eye(40) * 255)


def test_samples_and_nearest_images_are_contact_sheets(page):
    arrays = generation_arrays()
    samples, gaussian, nearest = page.images("samples")
    assert samples.shape == (3 * 8, 4 * 8, 3)
    assert gaussian.shape == (8, 4 * 8, 3)
    assert nearest.shape == (2 * 8, 5 * 8, 3)
    np.testing.assert_array_equal(samples[16:, 8:16], np.rint(arrays["samples"][2, 1] * 255))
    np.testing.assert_array_equal(nearest[8:, :8], np.rint(arrays["nearest"][0] * 255))
    assert "8 × 8 pixels, 4 per class" in page.texts["samples"]
    assert "1×: 8 × 8 pixels 2×: 16 × 16 pixels" in page.texts["sample-resolutions"]


def test_guidance_has_its_values(page):
    text = page.texts["guidance"]
    assert "1: 90; 1.5: 95; 3: 100" in text
    assert "1: 0.0123; 1.5: 0.01; 3: nan" in text
    assert "0.04" in text  # mean of the finite standard errors


def test_inpainting_has_the_psnr_of_each_method(page):
    text = page.texts["inpainting"]
    for caption in METHODS.values():
        assert f"{caption}, 10.0 dB" in text
        assert f"{caption}, 20.0 dB" in text
    observed = np.rint(generation_arrays()["inpainting_observed"] * 255)
    np.testing.assert_array_equal(page.images("observed"), observed)


def test_configuration_and_environment_have_every_setting(page):
    text = page.texts["configuration"]
    for part in ("seed 7", "image_shape 8 × 8 × 3", "w0 10.0", "kind linear"):
        assert part in text
    assert "stages meta_learn, encode" in text
    assert len(page.find("details")) == 4  # data, field, field.map; packages
    assert "jax 0.10.2" in page.texts["environment"]


def test_a_section_without_its_file_or_arrays_is_left_out(tmp_path):
    def sections():
        return [attributes["id"] for attributes in read_page(tmp_path).find("section")]

    write_run(tmp_path)
    expected = list(SECTIONS)
    for prefix in ("inpainting", "guidance"):
        arrays = {k: v for k, v in generation_arrays().items() if not k.startswith(prefix)}
        np.savez(tmp_path / "generate" / "report.npz", **arrays)
        assert sections() == [name for name in SECTIONS if name != prefix]
    np.savez(tmp_path / "generate" / "report.npz", **generation_arrays())
    for file, removed in {
        "config.json": {"configuration"},
        "environment.json": {"environment"},
        "meta_learn/curves.json": {"training"},
        "classify/report.npz": {"confusion"},
        "meta_learn/report.npz": set(SECTIONS[1:6]),
        "generate/report.npz": set(SECTIONS[8:13]),
    }.items():
        (tmp_path / file).unlink()
        expected = [name for name in expected if name not in removed]
        assert sections() == expected
    assert expected == ["results"]


def test_damaged_files_are_named(tmp_path):
    write_run(tmp_path)
    path = tmp_path / "meta_learn" / "report.npz"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DamagedFileError, match=r"meta_learn/report\.npz"):
        report.write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()
