"""What can be asked of a run, on one with a random field and generator: functa/explore without its page."""

import jax
import numpy as np
import pytest

from functa.data.functaset import format
from functa.diffusion import inpainter
from functa.diffusion.observation import DEGRADATIONS
from functa.evaluation.analysis.latent_space import bicubic
from functa.explore import collection, decoding, drawing, opened
from functa.explore.drawing import Sample, Settings
from functa.explore.explorer import Explorer, Record
from functa.explore.kept import Kept
from functa.fields import psnr as metrics
from functa.fields.field import Field
from functa.pipeline import load
from functa.runtime import config as config_lib
from tests.support import generator_runs

USUAL = Settings(guidance=1.5, steps=4, solver="heun")  # of digits:tiny


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Its functaset holds the digits, each training image twice."""
    return generator_runs.make(tmp_path_factory.mktemp("explore") / "run", encoded=True)


@pytest.fixture(scope="module")
def there(run):
    return opened.open_run(run, data_dir=None)


@pytest.fixture(scope="module")
def explorer(there):
    return Explorer(there)


def samples_of(numbers, label, settings=USUAL, seed=0):
    return [Sample(seed, number, label, settings) for number in numbers]


def test_what_was_used_last_is_kept():
    kept, made = Kept(2), []

    def make(key):
        return kept.get(key, lambda: made.append(key) or key.upper())

    assert [make(key) for key in "abacb"] == ["A", "B", "A", "C", "B"]
    assert made == ["a", "b", "c", "b"]  # c pushed b out, which a had outlived
    assert kept.find("a") is None
    assert kept.find("c") == "C"


@pytest.mark.parametrize("label", [None, 3])
def test_pages_lead_through_a_split(explorer, monkeypatch, label):
    monkeypatch.setattr(collection, "_BLOCK", 7)
    monkeypatch.setattr(collection, "_MOST_LOOKED_THROUGH", 30)
    source = explorer.opened.functaset.source("train", cache="host")
    labels = source.read(np.arange(source.num_examples))["label"]
    rows, start = [], 0
    while start is not None:
        page = explorer.browse("train", start=start, count=5, label=label).page
        assert len(page.rows) <= 5
        np.testing.assert_array_equal(page.records["label"], labels[page.rows])
        rows += page.rows.tolist()
        start = page.following
    wanted = np.arange(len(labels)) if label is None else np.flatnonzero(labels == label)
    assert rows == wanted.tolist()


def test_an_image_stands_beside_what_was_encoded(explorer):
    """The PSNR between the two is the one that was stored: of augmented copies too."""
    for split in ("train", "validation", "test"):
        found = explorer.browse(split, start=3, count=9, label=None)
        assert found.note == ""
        originals = found.originals.astype(np.float32) / 255
        psnr = metrics.psnr(np.square(found.images - originals).mean((1, 2, 3)))
        # Values beyond [0, 1] are clipped on the page and latents were rounded.
        stored = found.page.records["psnr"]
        assert np.all(psnr > stored - 0.05)
        assert np.median(psnr - stored) < 0.5
        assert set(found.page.records["copy"]) == ({0, 1} if split == "train" else {0})
    record = explorer.decode(Record("train", 5), scale=1)
    np.testing.assert_array_equal(
        record.original, explorer.browse("train", start=5, count=1, label=None).originals[0]
    )


def test_an_image_is_decoded_at_a_scale_beside_bicubic(explorer, there):
    made = explorer.decode(Record("test", 4), scale=3)
    records = there.functaset.source("test", cache="none").read(np.array([4]))
    latents = format.float32_latents(records)
    direct = np.asarray(there.field(there.field_params["field"], latents, shape=(24, 24)))[0]
    np.testing.assert_allclose(made.image, direct.clip(0, 1), atol=1e-5)
    enlarged = bicubic(made.original[None].astype(np.float32) / np.float32(255), 3)[0]
    np.testing.assert_allclose(made.bicubic, np.clip(enlarged, 0, 1), atol=1e-6)
    assert (made.label, made.psnr) == (records["label"][0], records["psnr"][0])


def test_a_sample_is_decoded_beside_bicubic_of_itself(explorer):
    (sample,) = samples_of([3], 7)
    made, small = explorer.decode(sample, scale=2), explorer.decode(sample, scale=1)
    assert (made.image.shape, small.image.shape) == ((16, 16, 1), (8, 8, 1))
    assert made.original is None
    assert "no original" in made.note
    np.testing.assert_allclose(made.bicubic, np.clip(bicubic(small.image[None], 2), 0, 1)[0])
    assert (made.label, made.psnr) == (7, None)


def test_samples_are_those_of_the_tool(explorer, there):
    labels = np.array([7, 2, 10], np.int32)
    numbers = np.arange(3, dtype=np.int32)
    direct = there.generator.sample(seed=5, numbers=numbers, labels=labels, batch_size=16)
    asked = [Sample(5, k, int(label), USUAL) for k, label in enumerate(labels)]
    images = explorer.sample(asked, scale=2)
    decode = jax.jit(lambda latents: there.field(there.field_params["field"], latents, (16, 16)))
    np.testing.assert_allclose(images, np.clip(decode(direct), 0, 1), atol=1e-4)


def test_a_sample_is_the_same_beside_any_others(explorer):
    many = explorer.sample(samples_of(range(13), 4), scale=1)  # more than a block
    fresh = Explorer(explorer.opened)
    few = fresh.sample(samples_of([12, 2], 4), scale=1)
    np.testing.assert_array_equal(few, many[[12, 2]])
    for settings in (
        USUAL._replace(steps=5),
        USUAL._replace(guidance=4.0),
        USUAL._replace(solver="euler"),
    ):
        other = fresh.sample(samples_of([12, 2], 4, settings), scale=1)
        assert np.abs(other - few).max() > 1e-3
    other = fresh.sample(samples_of([12, 2], 4, seed=1), scale=1)
    assert np.abs(other - few).max() > 1e-3


def test_programs_and_latents_are_not_made_twice(there, monkeypatch):
    made, drawing_of = [], drawing.generation.make_keyed_sampler

    def counted(*args, **kwargs):
        made.append(args)
        return drawing_of(*args, **kwargs)

    monkeypatch.setattr(drawing.generation, "make_keyed_sampler", counted)
    said = []
    draw = drawing.Drawing(there.generator, said.append)
    for seed in (0, 1, 0):
        draw.draw(samples_of(range(11), 4, seed=seed))
    assert len(made) == 1
    assert said == ["drawing 11 samples"] * 2


def test_a_strip_leads_from_end_to_end(explorer, there):
    first, last = Sample(0, 3, 3, USUAL), Sample(0, 14, 4, USUAL)
    images, ends = explorer.strip((first, last), count=5, settings=USUAL, scale=1)
    np.testing.assert_allclose(images[[0, -1]], ends, atol=1e-3)
    chosen = dict(numbers=np.array([3, 14], np.int32), labels=np.array([3, 4], np.int32))
    noisy = there.generator.initial_noise(seed=0, numbers=chosen["numbers"])
    strip = there.generator.interpolate(noisy, chosen["labels"], count=5)
    direct = there.field(there.field_params["field"], strip)
    np.testing.assert_allclose(images, np.clip(direct, 0, 1), atol=1e-3)
    assert np.abs(images[2] - images[0]).max() > 1e-3


def test_a_strip_from_a_sample_of_one_seed_to_an_image(explorer):
    fine = USUAL._replace(guidance=1.0, steps=60)
    mixed = (Sample(8, 3, 3, fine), Record("test", 5))
    images, ends = explorer.strip(mixed, count=3, settings=fine, scale=1)
    np.testing.assert_allclose(images[0], ends[0], atol=1e-3)
    np.testing.assert_allclose(images[-1], ends[-1], atol=0.05)
    record = explorer.decode(Record("test", 5), scale=1)
    np.testing.assert_allclose(ends[1], record.image, atol=1e-6)


def test_what_is_hidden_is_filled_in(explorer, there):
    image, _ = explorer.test_image(9)
    hidden = np.zeros((8, 8), bool)
    hidden[:, :4] = True
    made = explorer.impute(9, hidden, draws=3, steps=3, seed=0)
    original = image.astype(np.float32) / 255
    for picture in (made.without, *made.draws, made.mean):
        np.testing.assert_allclose(picture[:, 4:], original[:, 4:], atol=1e-6)
        assert picture.min() >= 0
        assert picture.max() <= 1
    np.testing.assert_allclose(made.mean, made.draws.mean(0), atol=1e-6)
    assert np.abs(made.draws[0] - made.draws[1]).max() > 1e-3
    named = {"without": made.without, "draw": made.draws[0], "mean": made.mean}
    for name, picture in named.items():
        mse = np.square(picture[:, :4] - original[:, :4]).mean(dtype=np.float64)
        np.testing.assert_allclose(made.psnr[name], -10 * np.log10(mse), rtol=1e-4)
    assert made.seen.shape == (8, 8, 4)
    np.testing.assert_array_equal(made.seen[..., 3] == 0, hidden)
    # The same as the tool's left half, where the same is drawn.
    tool = inpainter.Inpainter(there.generator, DEGRADATIONS["half"], steps=3, seed=0)
    images = original[None].astype(np.float32)
    average = np.zeros_like(original)
    names = np.array([0])
    compared = inpainter.compare_methods(
        tool, images, image_ids=names, samples=3, mean_image=average
    )
    np.testing.assert_allclose(made.without, compared["no_prior"][0], atol=1e-5)
    np.testing.assert_allclose(made.mean, compared["sample_mean"][0], atol=1e-3)
    again = explorer.impute(9, hidden, draws=3, steps=3, seed=1)
    np.testing.assert_array_equal(again.without, made.without)
    assert np.abs(again.mean - made.mean).max() > 1e-3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda e: e.browse("best", start=0, count=5, label=None), "no split 'best'; there are"),
        (
            lambda e: e.browse("test", start=96, count=5, label=None),
            "start=96 must be from 0 to 95",
        ),
        (lambda e: e.browse("test", start=0, count=101, label=10), "count=101 .*; class=10 must"),
        (lambda e: e.decode(Record("test", -1), scale=1), "has the rows 0 to 95, not -1"),
        (lambda e: e.decode(Record("test", 0), scale=17), "scale=17 must be from 1 to 16"),
        (lambda e: e.decode(Record("test", 0), scale=0), "scale=0 must be"),
        (lambda e: e.decode(Sample(-1, 0, 3, USUAL), scale=1), "seed=-1 must be from 0"),
        (lambda e: e.decode(Sample(0, 0, 11, USUAL), scale=1), "class=11 must be from 0 to 10"),
        (
            lambda e: e.sample(samples_of([0], 1, USUAL._replace(guidance=-1)), scale=1),
            "guidance=-1",
        ),
        (
            lambda e: e.sample(samples_of([0], 1, USUAL._replace(steps=0)), scale=1),
            "steps=0 must be",
        ),
        (
            lambda e: e.sample(samples_of([0], 1, USUAL._replace(solver="x")), scale=1),
            "solver='x': kn",
        ),
        (lambda e: e.sample([], scale=1), "count=0 must be from 1 to 100"),
        (lambda e: e.test_image(96), "the test images are 0 to 95, not 96"),
        (
            lambda e: e.impute(0, np.zeros((8, 8), bool), draws=1, steps=2, seed=0),
            "nothing is hidden",
        ),
        (lambda e: e.impute(0, np.ones((8, 7), bool), draws=1, steps=2, seed=0), "the mask has"),
        (lambda e: e.impute(0, np.ones((8, 8), bool), draws=17, steps=2, seed=0), "draws=17 must"),
    ],
)
def test_what_cannot_be_is_refused(explorer, call, message):
    with pytest.raises(ValueError, match=message):
        call(explorer)


def test_a_strip_of_too_many_is_refused(explorer):
    ends = (Record("test", 0), Record("test", 1))
    for count in (2, 34):
        with pytest.raises(ValueError, match=f"count={count} must be from 3 to 33"):
            explorer.strip(ends, count=count, settings=USUAL, scale=1)


def test_images_larger_than_memory_are_refused(explorer, monkeypatch):
    monkeypatch.setattr(decoding, "MOST_PIXELS", 64 * 4 * 4)
    assert explorer.sample(samples_of(range(4), 1), scale=2).shape == (4, 16, 16, 1)
    with pytest.raises(
        ValueError, match="5 images of 16x16 pixels are 1,280 pixels, more than 1,024"
    ):
        explorer.sample(samples_of(range(5), 1), scale=2)


@pytest.mark.parametrize(
    ("side", "interpolation", "scale"),
    [(32, "nearest", 16), (256, "nearest", 4), (256, "bilinear", 2), (1500, "nearest", 1)],
)
def test_the_largest_scale_is_what_memory_allows(side, lookup, scale):
    field = Field(
        image_shape=(side, side, 3),
        latent_shape=(4, 4, 64),
        interpolation=lookup,
        coordinates="local" if lookup == "nearest" else "periodic",
        map="linear",
        upsampling=1,
        modulation="shift",
        width=64,
        depth=6,
        w0=10.0,
    )
    assert decoding.largest_scale(field) == scale


def test_without_a_generator_the_rest_works(run, tmp_path):
    (tmp_path / "run").mkdir()
    for part in ("config.json", "meta_learn", "functaset"):
        (tmp_path / "run" / part).symlink_to(run / part)
    explorer = Explorer(opened.open_run(tmp_path / "run", data_dir=None))
    assert len(explorer.browse("test", start=0, count=5, label=None).images) == 5
    assert explorer.decode(Record("test", 0), scale=2).image.shape == (16, 16, 1)
    missing = explorer.facts()["generator"]["missing"]
    assert "the stage generate of" in missing
    calls = (
        lambda: explorer.sample(samples_of([0], 1), scale=1),
        lambda: explorer.decode(Sample(0, 0, 1, USUAL), scale=1),
        lambda: explorer.strip((Record("test", 0),) * 2, count=3, settings=USUAL, scale=1),
        lambda: explorer.impute(0, np.ones((8, 8), bool), draws=1, steps=2, seed=0),
    )
    for call in calls:
        with pytest.raises(ValueError, match="the stage generate of"):
            call()


def test_without_images_the_rest_works(tmp_path):
    data = {"data.source": "tfds", "data.name": "mine"}
    run = generator_runs.make(tmp_path / "run", **data)
    explorer = Explorer(opened.open_run(run, data_dir=str(tmp_path / "data")))
    found = explorer.browse("test", start=0, count=5, label=None)
    assert found.originals is None
    assert str(tmp_path / "data") in found.note
    made = explorer.decode(Record("test", 0), scale=2)
    assert made.original is None
    assert made.note == found.note == explorer.facts()["originals"]["missing"]
    with pytest.raises(ValueError, match="the images are not there"):
        explorer.impute(0, np.ones((8, 8), bool), draws=1, steps=2, seed=0)


def test_images_of_another_data_set_are_not_shown(tmp_path, there):
    """This functaset is random: its ids are not those of the digits, or its classes are not."""
    explorer = Explorer(opened.open_run(generator_runs.make(tmp_path / "run"), data_dir=None))
    found = explorer.browse("test", start=0, count=5, label=None)
    assert found.originals is None
    assert "the images of the split test have no id 200" in found.note
    found = explorer.browse("train", start=0, count=45, label=None)
    assert found.originals is None
    assert "these are not the images that were encoded" in found.note


def test_a_generator_that_knows_no_unknown_class(tmp_path):
    changes = {"generate.label_dropout": 0.0, "generate.guidance.scale": 1.0, "generate.sweep": ()}
    run = generator_runs.make(tmp_path / "run", **changes)
    explorer = Explorer(opened.open_run(run, data_dir=None))
    plain = USUAL._replace(guidance=1.0)
    assert explorer.sample(samples_of([0], 3, plain), scale=1).shape == (1, 8, 8, 1)
    assert not explorer.facts()["generator"]["any_class"]
    with pytest.raises(ValueError, match="generate.label_dropout=0"):
        explorer.sample(samples_of([0], 10, plain), scale=1)
    with pytest.raises(ValueError, match="wants a model that knows images of any class"):
        explorer.sample(samples_of([0], 3), scale=1)
    with pytest.raises(ValueError, match="generate.label_dropout=0"):
        explorer.impute(0, np.ones((8, 8), bool), draws=1, steps=2, seed=0)


def test_what_the_run_does_itself_may_be_asked_for(tmp_path):
    changes = {"generate.schedule.steps": 256, "generate.guidance.scale": 25.0}
    made = load.load_generator(generator_runs.make(tmp_path / "run", **changes))
    own = drawing.Drawing(made, lambda _: None)
    assert own.config(own.usual).generate.schedule.steps == 256
    with pytest.raises(ValueError, match="guidance=26.0 must be from 0 to 25; steps=257 must be"):
        own.config(own.usual._replace(steps=257, guidance=26.0))


def test_a_generator_of_another_functaset_is_not_used(run, tmp_path):
    (tmp_path / "run").mkdir()
    for part in ("config.json", "meta_learn", "functaset"):
        (tmp_path / "run" / part).symlink_to(run / part)
    (tmp_path / "run" / "generate").mkdir()
    (tmp_path / "run" / "generate" / "best").symlink_to(run / "generate" / "best")
    config_lib.write_json(
        tmp_path / "run" / "generate" / "metrics.json", {"functaset_digest": "sha256:1"}
    )
    there = opened.open_run(tmp_path / "run", data_dir=None)
    assert there.generator is None
    assert "was trained on the functaset sha256:1" in there.no_generator


def test_images_in_colour(tmp_path, monkeypatch):
    data = {"data.source": "tfds", "data.name": "mine", "data.image_shape": (8, 8, 3)}
    there = opened.open_run(generator_runs.make(tmp_path / "run", **data), data_dir=None)
    explorer = Explorer(there)
    assert explorer.browse("test", start=0, count=5, label=None).images.shape == (5, 8, 8, 3)
    assert explorer.decode(Record("test", 0), scale=2).bicubic.shape == (16, 16, 3)
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    monkeypatch.setattr(there.originals, "test_image", lambda row: (image, 3))
    hidden = np.tril(np.ones((8, 8), bool))
    made = explorer.impute(0, hidden, draws=2, steps=2, seed=0)
    expected = image[~hidden] / np.float32(255)
    for picture in (made.without, *made.draws, made.mean, made.seen[..., :3]):
        np.testing.assert_allclose(picture[~hidden], expected, atol=1e-6)
    np.testing.assert_array_equal(made.seen[..., 3] == 0, hidden)
