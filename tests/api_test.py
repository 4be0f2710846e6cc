"""The Python API on a finished run, in this process and in a fresh interpreter."""

import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

import functa
from functa.data.functaset.format import quantize

EXAMPLE = """
import sys
import functa
assert "jax" not in sys.modules  # JAX reads its settings when it is imported
run = functa.load("runs/digits")
images = run.images("test")[:16]
latents = run.encode(images)
recon = run.decode(latents)
large = run.decode(latents, size=(128, 96))
print(functa.psnr(recon, images).mean())
train = run.functaset["train"]
print(run.classify(latents).argmax(-1))
new = run.sample(16, labels=3, guidance=1.5, seed=0)
config = functa.config("digits", "tiny"); config.field.width = 32
assert images.shape == recon.shape == (16, 8, 8, 1) and large.shape == (16, 128, 96, 1)
assert latents.shape == new.shape == (16, 2, 2, 8) and len(train) == 192
"""


@pytest.fixture(scope="module")
def run(finished):
    return functa.load(finished[0])


@pytest.fixture(scope="module")
def images(run):
    return run.images("test")[:5]


def run_example(example, env, folder):
    result = subprocess.run(
        [sys.executable, "-c", example],
        env=env,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert result.returncode == 0, result.stderr


def test_example_in_a_fresh_interpreter(finished, program_env, tmp_path):
    run_example(EXAMPLE.replace("runs/digits", str(finished[0])), program_env, tmp_path)


@pytest.mark.slow
def test_example_trains_a_changed_config(finished, program_env, tmp_path):
    train = 'functa.train(config, workdir="runs/notebook")\n'
    example = EXAMPLE.replace("runs/digits", str(finished[0])) + train
    run_example(example, program_env, tmp_path)
    assert (tmp_path / "runs" / "notebook" / "report.html").exists()


def test_encode_gives_the_latents_of_the_functaset(run, finished):
    test = run.functaset["test"]
    latents = run.encode(run.images("test")[:])
    stored = quantize(latents, "float16")[0].astype(np.float32)
    np.testing.assert_allclose(stored, test[:]["latents"], atol=2e-3)
    psnr = functa.psnr(run.decode(latents), run.images("test")[:])
    np.testing.assert_allclose(psnr, test[:]["psnr"], atol=1e-3)
    assert psnr.mean() == pytest.approx(run.metrics["encode"]["psnr"], abs=1e-3)


def test_one_image_is_a_batch_of_one_without_its_axis(run, images):
    latents = run.encode(images)
    np.testing.assert_allclose(run.encode(images[1]), latents[1], atol=1e-5)
    np.testing.assert_allclose(run.decode(latents[1]), run.decode(latents)[1], atol=1e-5)
    np.testing.assert_allclose(run.classify(latents[1]), run.classify(latents)[1], atol=1e-5)
    hidden = np.eye(8, dtype=bool)
    assert run.inpaint(images[0], hidden, samples=2, steps=2).shape == (2, 8, 8, 1)


@pytest.mark.parametrize(
    "convert",
    [
        lambda images: images / np.float32(255),
        lambda images: images / 255,
        lambda images: images[..., 0],
        lambda images: jax.numpy.asarray(images),
    ],
)
def test_encode_takes_floats_gray_arrays_and_jax_arrays(run, images, convert):
    np.testing.assert_allclose(run.encode(convert(images)), run.encode(images), atol=1e-5)


def test_resize_crops_or_stretches(run, images):
    padded = np.pad(
        np.repeat(images, 2, axis=1).repeat(2, axis=2), ((0, 0), (0, 0), (8, 8), (0, 0))
    )
    cropped = run.decode(run.encode(padded, resize="crop"))
    stretched = run.decode(run.encode(padded, resize="stretch"))
    assert np.abs(cropped - run.decode(run.encode(images))).mean() < 0.05
    assert np.abs(stretched - cropped).mean() > 0.05
    with pytest.raises(ValueError, match="resize"):
        run.encode(padded)


def test_decode_is_the_field_at_any_size(run, images):
    latents = run.encode(images)
    expected = run.field(run.params["field"], latents, shape=(20, 12)).clip(0, 1)
    np.testing.assert_allclose(run.decode(latents, size=(20, 12)), expected, atol=1e-5)
    assert run.decode(latents[:0]).shape == (0, 8, 8, 1)
    assert run.classify(latents[:0]).shape == (0, 10)
    assert run.encode(np.zeros((0, 9, 9, 1)), resize="crop").shape == (0, 2, 2, 8)


def test_classify_gives_the_probabilities_that_the_stage_measured(run):
    test = run.functaset["test"][:]
    probabilities = run.classify(test["latents"])
    np.testing.assert_allclose(probabilities.sum(-1), 1, atol=1e-5)
    accuracy = np.mean(probabilities.argmax(-1) == test["label"])
    assert accuracy == pytest.approx(run.metrics["classify"]["accuracy"], abs=1e-6)


def test_samples_depend_on_seed_label_and_number(run):
    samples = run.sample(4, labels=[0, 1, 2, 3])
    np.testing.assert_allclose(run.sample(3), samples[:3], atol=1e-4)
    assert np.abs(run.sample(4, seed=1) - samples).max() > 0.1
    assert np.abs(run.sample(4, labels=5) - samples).max() > 0.01
    assert np.abs(run.sample(4, guidance=4.0) - samples).max() > 0.01


def test_inpaint_keeps_visible_pixels(run, images):
    hidden = np.zeros((8, 8), bool)
    hidden[:, :4] = True
    filled = run.inpaint(images[:2], hidden, samples=3, steps=2)
    assert filled.shape == (2, 3, 8, 8, 1)
    visible = images[:2, None, :, 4:] / np.float32(255)
    np.testing.assert_allclose(filled[:, :, :, 4:], visible.repeat(3, axis=1), atol=1e-6)
    assert filled[:, :, :, :4].std(axis=1).max() > 0


def test_inpainting_without_prior_is_one_result_that_needs_no_seed(run, images):
    hidden = np.zeros((8, 8), bool)
    hidden[:4] = True
    first, second = (run.inpaint(images[0], hidden, steps=2, seed=k, prior=False) for k in (0, 1))
    assert first.shape == (1, 8, 8, 1)
    np.testing.assert_array_equal(first, second)
    assert np.abs(first[0, :4] - run.inpaint(images[0], hidden, steps=2)[0, :4]).max() > 1e-3


def test_interpolation_ends_at_both_latents(run, images):
    first, last = run.encode(images[:2])
    path = run.interpolate(first, last, count=3, steps=40, guidance=1.0)
    ends = run.decode(path[[0, -1]]), run.decode(np.stack([first, last]))
    np.testing.assert_allclose(*ends, atol=0.1)
    with pytest.raises(ValueError, match="count"):
        run.interpolate(first, last, count=1)


def test_batches_cover_a_split_once_per_epoch(run):
    split = run.functaset["train"]
    ordered = list(split.batches(50))
    assert [len(batch["id"]) for batch in ordered] == [50, 50, 50, 42]
    np.testing.assert_array_equal(np.concatenate([b["id"] for b in ordered]), split[:]["id"])
    shuffled = [batch["id"] for batch in split.batches(50, seed=0, epochs=2)]
    epochs = np.concatenate(shuffled).reshape(2, -1)
    np.testing.assert_array_equal(np.sort(epochs), np.sort(split[:]["id"])[None].repeat(2, 0))
    assert (epochs[0] != epochs[1]).any()
    assert (epochs[0] != split[:]["id"]).any()
    assert len(list(split.batches(50, seed=0, drop_last=True))) == 3
    assert split[-1]["id"] == split[:]["id"][-1]


@pytest.mark.parametrize(
    "call",
    [
        lambda run: run.encode(np.zeros((2, 9, 9, 1), np.uint8)),
        lambda run: run.encode(np.zeros((2, 8, 8, 3), np.uint8)),
        lambda run: run.encode(np.full((8, 8, 1), 2.0)),
        lambda run: run.encode(np.zeros((8, 8, 1), np.uint8), resize="pad"),
        lambda run: run.decode(np.zeros((2, 2))),
        lambda run: run.decode(np.zeros((2, 2, 8)), size=(0, 4)),
        lambda run: run.decode(np.zeros((2, 2, 8)), size=(10**6, 10**6)),
        lambda run: run.decode(np.zeros((2, 2, 8)), size=5),
        lambda run: run.encode(np.full((8, 8, 1), np.nan)),
        lambda run: run.encode(np.zeros((0, 9, 8, 1), np.uint8)),
        lambda run: run.sample(2, seed=1.5),
        lambda run: run.sample(2, seed=1 << 32),
        lambda run: functa.psnr(np.full((2, 8, 8, 1), 255.0), np.zeros((2, 8, 8, 1))),
        lambda run: functa.config("cifar10_spatial", "0x0x0"),
        lambda run: run.classify(np.zeros((3, 2, 2, 7))),
        lambda run: run.sample(0),
        lambda run: run.sample(2, labels=11),
        lambda run: run.sample(2.5),
        lambda run: run.sample(-1),
        lambda run: run.interpolate(*np.zeros((2, 2, 2, 8)), labels=(1, 99)),
        lambda run: run.inpaint(np.zeros((8, 8, 1), np.uint8), np.full((8, 8), 0.5)),
        lambda run: run.functaset["tests"],
        lambda run: run.sample(2, labels=[1, 2, 3]),
        lambda run: run.inpaint(np.zeros((8, 8, 1), np.uint8), np.zeros((8, 8), bool)),
        lambda run: run.images("tests"),
        lambda run: run.functaset["train"].batches(0),
        lambda run: functa.psnr(np.zeros((2, 8, 8, 1)), np.zeros((3, 8, 8, 1))),
        lambda run: functa.config("digit"),
        lambda run: functa.config("digits", "small"),
        lambda run: functa.load("runs/missing"),
    ],
)
def test_wrong_arguments_are_refused(run, call):
    with pytest.raises(ValueError, match=r"\w"):
        call(run)


def test_wrong_types_are_refused(run):
    with pytest.raises(TypeError):
        run.encode(np.zeros((8, 8, 1), np.int32))
    with pytest.raises(TypeError, match="functa.config"):
        functa.train("digits", "run")


def test_psnr_of_uint8_and_float_images():
    images = np.full((2, 4, 4, 1), 51, np.uint8)
    assert functa.psnr(images, np.full((2, 4, 4, 1), 0.1)) == pytest.approx(20)
    assert functa.psnr(images[0], images[0]) == pytest.approx(100)


def test_train_resumes_and_leaves_signals_alone(tmp_path):
    config = functa.config("digits", "tiny")
    config.stages = ("meta_learn",)
    handler = signal.getsignal(signal.SIGINT)
    lines: list[str] = []
    run = functa.train(config, tmp_path / "run", say=lines.append)
    assert signal.getsignal(signal.SIGINT) is handler
    assert (tmp_path / "run" / "report.html").exists()
    assert lines
    again = functa.train(config, tmp_path / "run", say=lines.append)
    np.testing.assert_array_equal(again.encode(np.eye(8)), run.encode(np.eye(8)))
    with pytest.raises(ValueError, match=r"run/\w+"):  # the stages encode and classify are missing
        run.classify(np.zeros((2, 2, 8)))
