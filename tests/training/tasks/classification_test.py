import functools
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from functa.configs import common
from functa.models import classifier
from functa.training.tasks import classification
from functa.training.tasks.builders import build_classification
from tests.support import losses

CLASSES = 3
SHAPE = (2, 2, 4)


class FakeSource:
    def __init__(self, arrays):
        self.arrays = arrays
        self.num_examples = len(arrays["label"])

    def read(self, indices):
        return {name: values[indices] for name, values in self.arrays.items()}


class FakeFunctaset:
    """Latents of three classes around three means, far from zero and from unit scale."""

    def __init__(self, **sizes):
        random = np.random.default_rng(0)
        means = random.normal(size=(CLASSES, *SHAPE))
        self.arrays = {}
        for split, size in sizes.items():
            label = random.integers(0, CLASSES, size).astype(np.int32)
            latents = means[label] + 0.8 * random.normal(size=(size, *SHAPE))
            self.arrays[split] = {
                "latents": (latents * [0.1, 1, 3, 10] + 5).astype(np.float32),
                "label": label,
                "id": np.arange(size, dtype=np.int64),
                "psnr": np.zeros(size, np.float32),
            }
        train = self.arrays["train"]["latents"]
        self.manifest = SimpleNamespace(
            mean=train.mean((0, 1, 2)).tolist(),
            std=train.std((0, 1, 2)).tolist(),
            scalar_std=float(train.std()),
            latent_shape=list(SHAPE),
            layout=SimpleNamespace(latent_bytes=train[0].nbytes),
        )

    def num_examples(self, split):
        return len(self.arrays[split]["label"])

    def source(self, split):
        return FakeSource(self.arrays[split])


def make_config(**changes):
    config = common.base()
    config.data.num_classes = CLASSES
    config.field.latent_shape = SHAPE
    config.classify.model = common.mlp(width=16, depth=1, dropout=0.1)
    config.classify.batch_size = 16
    config.classify.eval_batch_size = 20
    config.classify.steps = 150
    config.classify.optimizer.warmup_steps = 5
    config.classify.optimizer.learning_rate = 1e-2
    config.update_from_flattened_dict(changes)
    return config


def check(config):
    shapes = {"latent_shape": tuple(config.field.latent_shape), "num_classes": CLASSES}
    return classification.validate(config.classify, **shapes)


def make_task(functaset=None, **changes):
    functaset = functaset or FakeFunctaset(train=64, validation=10, test=10)
    return build_classification(make_config(**changes), functaset)


def batch_of(size=16, seed=0):
    random = np.random.default_rng(seed)
    return {
        "latents": (random.normal(size=(size, *SHAPE)) * 3 + 1).astype(np.float32),
        "label": random.integers(0, CLASSES, size).astype(np.int32),
    }


def params_of(task, seed=0):
    """Params whose last layer is not zero, so that logits differ."""
    params = jax.jit(task.init)(jax.random.key(seed))
    kernel = params["head"]["logits"]["kernel"]
    noise = np.random.default_rng(seed).normal(size=kernel.shape).astype(np.float32)
    params["head"]["logits"]["kernel"] = noise
    return params


def slow_logits(functaset, params, latents, kind="channel"):
    manifest = functaset.manifest
    if kind == "channel":
        inputs = (latents - np.float32(manifest.mean)) / np.float32(manifest.std)
    else:
        inputs = latents / np.float32(manifest.scalar_std)
    model = classifier.make_classifier(num_classes=CLASSES, **make_config().classify.model)
    return np.asarray(model.apply({"params": params}, inputs, train=False), np.float64)


def slow_cross_entropy(logits, probabilities):
    total = 0.0
    for row, target in zip(logits, probabilities, strict=True):
        log_partition = math.log(sum(math.exp(value) for value in row))
        total -= sum(p * (value - log_partition) for p, value in zip(target, row, strict=True))
    return total / len(logits)


@pytest.mark.parametrize("kind", ["channel", "scalar"])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_loss_matches_the_reference(kind, smoothing):
    functaset = FakeFunctaset(train=64, validation=10, test=10)
    task = make_task(
        functaset,
        **{
            "classify.normalization": kind,
            "classify.label_smoothing": smoothing,
            "classify.model.dropout": 0.0,
        },
    )
    params, batch = params_of(task), batch_of()
    loss, logs = losses.whole(task)(params, batch, jax.random.key(0))
    logits = slow_logits(functaset, params, batch["latents"], kind)
    targets = np.full((16, CLASSES), smoothing / CLASSES)
    targets[np.arange(16), batch["label"]] += 1 - smoothing
    np.testing.assert_allclose(loss, slow_cross_entropy(logits, targets), rtol=1e-4)
    np.testing.assert_allclose(logs["loss"], loss)
    np.testing.assert_allclose(logs["accuracy"], np.mean(logits.argmax(1) == batch["label"]))


RANDOM = [
    "classify.mixup",
    "classify.augment.drop",
    "classify.augment.noise",
    "classify.model.dropout",
]


@pytest.mark.parametrize("name", RANDOM)
def test_randomness_depends_on_the_key_only(name):
    calm = dict.fromkeys(RANDOM, 0.0)
    task = make_task(**calm | {name: 0.5})
    params, batch = params_of(task), batch_of()

    loss_fn = losses.whole(task)

    def loss(key):
        return float(loss_fn(params, batch, jax.random.key(key))[0])

    assert loss(0) == loss(0)
    assert loss(0) != loss(1)
    loss_fn = losses.whole(make_task(**calm))
    assert loss(0) == loss(1)


def test_mixup_comes_after_augmentation():
    """A mixed cell is zero if it was dropped from both examples, with probability 0.9^2."""
    task = make_task(**{"classify.augment.drop": 0.9, "classify.mixup": 0.5})
    batch = jax.jit(task.sample_inputs)(batch_of(size=400), jax.random.key(0))
    assert (np.asarray(batch["targets"]).max(axis=-1) < 1).mean() > 0.3
    zero = (np.asarray(batch["latents"]) == 0).all(axis=-1).mean()
    assert zero == pytest.approx(0.81, abs=0.04)


def test_evaluate_matches_the_reference():
    functaset = FakeFunctaset(train=64, validation=10, test=10)
    task = make_task(functaset, **{"classify.mixup": 0.5, "classify.label_smoothing": 0.3})
    params, batch = params_of(task), batch_of()
    rows = jax.device_get(jax.jit(task.metrics.evaluate)(params, batch))
    logits = slow_logits(functaset, params, batch["latents"])
    np.testing.assert_array_equal(rows["prediction"], logits.argmax(1))
    np.testing.assert_array_equal(rows["label"], batch["label"])
    np.testing.assert_array_equal(rows["correct"], logits.argmax(1) == batch["label"])
    assert 0 < rows["correct"].sum() < 16
    for row in range(16):
        target = np.eye(CLASSES)[batch["label"][row : row + 1]]
        expected = slow_cross_entropy(logits[row : row + 1], target)
        np.testing.assert_allclose(rows["loss"][row], expected, rtol=1e-3, atol=1e-5)
    assert [rows[name].dtype.name for name in ("correct", "prediction")] == ["float32", "int32"]


def test_top5_accuracy_matches_sorting():
    random = np.random.default_rng(0)
    for classes in (5, 9):
        logits = random.normal(size=(40, 1, 1, classes)).astype(np.float32)
        model = SimpleNamespace(apply=lambda variables, inputs, **_: inputs[:, 0, 0])
        evaluate = classification.make_evaluate(model, lambda latents: latents)
        label = random.integers(0, classes, 40).astype(np.int32)
        rows = evaluate({}, {"latents": logits, "label": label})
        assert ("in_top5" in rows) == (classes == 9)
    top5 = np.argsort(-logits[:, 0, 0], axis=-1)[:, :5]
    expected = [label[row] in top5[row] for row in range(40)]
    assert 10 < sum(expected) < 35
    np.testing.assert_array_equal(rows["in_top5"], np.float32(expected))
    metrics = classification.summarize(jax.device_get(rows))
    assert metrics["top5_accuracy"] == pytest.approx(sum(expected) / 40)
    assert metrics["top5_accuracy"] > metrics["accuracy"]


def test_summarize():
    rows = {
        "correct": np.array([1, 1, 1, 0, 1], np.float32),
        "loss": np.array([0, 1, 2, 3, 4], np.float32),
    }
    assert classification.summarize(rows) == {
        "accuracy": pytest.approx(0.8),
        "accuracy_standard_error": pytest.approx(math.sqrt(0.8 * 0.2 / 5)),
        "loss": pytest.approx(2.0),
    }


@pytest.mark.parametrize("rows", [{}, {"correct": np.zeros(0), "loss": np.zeros(0)}])
def test_empty_split_is_rejected(rows):
    with pytest.raises(ValueError, match="empty split"):
        classification.summarize(rows)


def test_confusion_matrix_matches_a_loop():
    random = np.random.default_rng(0)
    labels, predictions = random.integers(0, 4, size=(2, 500))
    labels[labels == 3] = 0  # a class without examples
    expected = np.zeros((4, 4), np.int64)
    for label, prediction in zip(labels, predictions, strict=True):
        expected[label, prediction] += 1
    np.testing.assert_array_equal(classification.confusion_matrix(labels, predictions, 4), expected)


@pytest.mark.parametrize(("label", "prediction"), [(3, 0), (0, -1)])
def test_confusion_matrix_rejects_unknown_classes(label, prediction):
    with pytest.raises(ValueError, match=r"must be in \[0, 3\)"):
        classification.confusion_matrix(np.array([0, label]), np.array([0, prediction]), 3)


def test_batches_follow_the_settings():
    functaset = FakeFunctaset(train=64, validation=25, test=10)
    task = make_task(functaset, **{"classify.cache": "none"})
    first, _ = task.data.train_batches(3, 5)
    assert {n: v.shape for n, v in first.items()} == {"latents": (16, *SHAPE), "label": (16,)}
    (other, _) = make_task(functaset, seed=1).data.train_batches(3, 5)
    assert (first["latents"] != other["latents"]).any()
    validation = list(task.data.eval_batches("validation"))
    assert [batch["mask"].sum() for batch in validation] == [20, 5]
    label = np.concatenate([batch["label"][batch["mask"] > 0] for batch in validation])
    np.testing.assert_array_equal(label, functaset.arrays["validation"]["label"])


def test_illustrations_match_the_reference():
    functaset = FakeFunctaset(train=64, validation=25, test=10)
    task = make_task(functaset)
    params = params_of(task)
    images, histograms = task.illustrate(params)
    assert not images
    latents = functaset.arrays["validation"]["latents"]
    manifest = functaset.manifest
    inputs = (latents - np.array(manifest.mean)) / np.array(manifest.std)
    norms = [math.sqrt(np.sum(example**2)) for example in inputs]
    np.testing.assert_allclose(histograms["input_norm"], norms, rtol=1e-3)
    weights = np.exp(slow_logits(functaset, params, latents))
    confidence = (weights / weights.sum(1, keepdims=True)).max(1)
    np.testing.assert_allclose(histograms["confidence"], confidence, rtol=1e-3)


def test_training_learns_the_classes():
    functaset = FakeFunctaset(train=300, validation=50, test=300)
    task = make_task(functaset, **{"classify.mixup": 0.2})
    params, _ = losses.train(task, steps=150)
    (batch,) = make_task(functaset, **{"classify.eval_batch_size": 300}).data.eval_batches("test")
    metrics = task.metrics.summarize(jax.device_get(task.metrics.evaluate(params, batch)))
    assert metrics[task.metrics.score] > 0.93
    assert metrics["loss"] < 0.4


def test_weight_decay_skips_biases():
    task = make_task(**{"classify.optimizer.weight_decay": 1.0})
    params = jax.tree.map(jnp.ones_like, task.init(jax.random.key(0)))
    gradients = jax.tree.map(jnp.zeros_like, params)
    updates, _ = task.optimizer.transformation.update(
        gradients, task.optimizer.transformation.init(params), params
    )
    for path, update in jax.tree_util.tree_leaves_with_path(updates):
        assert (np.abs(np.asarray(update)).max() > 0) == (path[-1].key == "kernel"), path


def test_layer_decay_scales_the_updates_of_blocks():
    model = common.transformer(width=8, depth=2, heads=2, mlp_width=8, dropout=0.0)
    without, with_decay = (
        make_task(**{"classify.model": model, "classify.optimizer.layer_decay": decay})
        for decay in (1.0, 0.5)
    )
    params = jax.tree.map(lambda leaf: leaf + 0.1, jax.jit(without.init)(jax.random.key(0)))
    gradient = jax.tree.map(jnp.ones_like, params)

    @functools.partial(jax.jit, static_argnums=0)
    def updates(optimizer):
        return optimizer.update(gradient, optimizer.init(params), params)[0]

    slow, fast = (updates(task.optimizer.transformation) for task in (with_decay, without))
    ratios = jax.tree.map(lambda a, b: np.asarray(a / b), slow, fast)
    for path, ratio in jax.tree_util.tree_leaves_with_path(ratios):
        names = {key.key for key in path}
        expected = {"block_0": 0.25, "block_1": 0.5, "norm": 1.0, "head": 1.0}
        (rate,) = [expected[name] for name in names & expected.keys()] or [0.125]
        np.testing.assert_allclose(ratio, rate, rtol=1e-5, err_msg=str(path))
    assert float(with_decay.optimizer.learning_rate(5)) == float(without.optimizer.learning_rate(5))


@pytest.mark.parametrize(
    ("changes", "messages"),
    [
        (
            {
                "classify.mixup": -1.0,
                "classify.augment.noise": -0.1,
                "classify.augment.crop": 2,
                "classify.label_smoothing": 1.0,
                "classify.normalization": "none",
                "classify.model.depth": 0,
            },
            ["mixup=-1.0", "augment: crop=2", "label_smoothing=1.0", "'none'", "depth=0"],
        ),
        ({"classify.augment.noise": float("nan")}, ["noise=nan"]),
        ({"classify.copies": "last"}, ["classify.copies='last'"]),
        ({"classify.optimizer.layer_decay": 0.0}, ["classify.optimizer.layer_decay=0.0"]),
        ({"classify.optimizer.layer_decay": 0.5}, ["classify.optimizer.layer_decay=0.5"]),
        ({"classify.model": common.mlp(widht=3)}, ["widht"]),
    ],
)
def test_all_problems_are_reported_at_once(changes, messages):
    problems = check(make_config(**changes))
    assert len(problems) == len(messages)
    assert all(any(message in problem for problem in problems) for message in messages)
    with pytest.raises(ValueError, match="classify"):
        make_task(**changes)
