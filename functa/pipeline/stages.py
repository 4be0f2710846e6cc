"""The stages: each reads what the earlier ones left in the directory of the run, and returns metrics."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from functa.data.functaset import reader
from functa.data.functaset.format import float32_latents
from functa.diffusion.generator import build_generator
from functa.diffusion.trained_generator import TrainedGenerator
from functa.evaluation import field_arrays, generation_arrays, generation_eval, pca_baseline
from functa.evaluation.evaluation_samples import EvaluationSamples
from functa.fields.decoder import make_decoder
from functa.fields.pixels import to_float
from functa.fields.psnr import psnr
from functa.pipeline import load
from functa.pipeline.run import Run
from functa.runtime import mesh, processes, rng
from functa.runtime.batching import apply_on_all_processes
from functa.runtime.errors import as_user_errors
from functa.training.checkpoint import Checkpoints, digest
from functa.training.progress import ProgressBar
from functa.training.tasks import builders, classification


def meta_learn(run: Run) -> dict[str, Any]:
    """images -> field"""
    fitter = run.fitter
    task = builders.build_meta_learning(
        run.config, fitter=fitter, sources=run.sources, devices=run.mesh.size, **run.processes
    )
    result = run.train(task)
    field_digest = digest(result.params)
    metrics = result.metrics | {"field_digest": field_digest}
    export = Checkpoints(run.workdir / "meta_learn" / "field", keep=1)
    export.remove_after(-1)  # left by a process that was killed at this point
    export.save(result.metrics["best_step"], result.params, {"digest": field_digest})
    export.close()
    params = mesh.to_host(result.params)
    field, test = fitter.field, run.sources["test"]
    baseline = _pca_psnr(run)
    if jax.process_index():
        return metrics  # process 0 writes the rest
    shown = test.read(np.arange(min(16, test.num_examples)))["image"]
    arrays = field_arrays.field_arrays(fitter, params, shown)
    run.write_arrays("meta_learn", arrays | {"psnr": result.test["psnr"], "pca_psnr": baseline})
    return metrics | {
        "pca_psnr": float(np.mean(baseline)),
        "field_parameters": sum(leaf.size for leaf in jax.tree.leaves(result.params["field"])),
        "latent_floats": int(np.prod(field.latent_shape)),
        "test_images": len(baseline),
    }


def _pca_psnr(run: Run) -> np.ndarray:
    """PSNR in dB of each test image under PCA of the same cells, with as many floats per cell."""
    field, train, test = run.fitter.field, run.sources["train"], run.sources["test"]
    count = pca_baseline.num_training_images(field.image_shape, train.num_examples)
    i, j, d = field.latent_shape
    blocks = pca_baseline.image_blocks(field.image_shape, count)
    parts = processes.share_work(
        lambda block: pca_baseline.cell_moments(
            train.read(np.asarray(blocks[block]))["image"], (i, j)
        ),
        len(blocks),
        name="PCA of training images",
    )
    total = functools.reduce(
        pca_baseline.Moments.add, (pca_baseline.Moments(*part) for part in parts)
    )
    pca = pca_baseline.make_cell_pca(total, grid=(i, j), components=d)
    mse = apply_on_all_processes(
        lambda rows: pca.mse(test.read(rows)["image"]),
        test.num_examples,
        batch_size=run.config.meta_learn.eval_batch_size,
        name="PCA",
    )
    return psnr(mse)


def encode(run: Run) -> dict[str, Any]:
    """field + images -> functaset"""
    with as_user_errors():
        params = load.load_field_params(run.workdir, run.fitter)
    params = jax.device_get(params)  # every process encodes on its own devices only

    fit = functools.partial(jax.jit(run.fitter.encode), params)
    result = run.encoder(fit, field_digest=digest(params)).encode(
        run.workdir / "functaset",
        progress=ProgressBar(run.say, "encode"),
        stop=lambda: run.raise_if_stopping("encode stopped; complete shards are kept"),
        **run.processes,
    )
    functaset = reader.open_functaset(run.workdir / "functaset", field_digest=None)
    return result | {"stored_psnr": _stored_psnr(run, functaset, params)}


def _stored_psnr(run: Run, functaset: reader.Functaset, params: Any) -> float:
    """Mean PSNR in dB of the test images decoded from the stored (quantized) latents."""
    field, latents, images = run.fitter.field, functaset.source("test"), run.sources["test"]

    @jax.jit
    def decoded_psnr(params, latents, images):
        errors = field(params, latents) - to_float(images)
        return psnr(jnp.mean(jnp.square(errors), axis=(1, 2, 3)))

    def batch_psnr(rows):
        stored = float32_latents(latents.read(rows))
        return decoded_psnr(params["field"], stored, images.read(rows)["image"])

    values = apply_on_all_processes(
        batch_psnr,
        images.num_examples,
        batch_size=run.config.encode.batch_size,  # a process decodes on one device
        name="stored PSNR",
    )
    return float(np.mean(values, dtype=np.float64))


def classify(run: Run) -> dict[str, Any]:
    """functaset -> labels"""
    with as_user_errors():
        params = load.load_field_params(run.workdir, run.fitter)
        functaset = reader.open_functaset(run.workdir / "functaset", field_digest=digest(params))
        task = builders.build_classification(
            run.config, functaset, devices=run.mesh.size, **run.processes
        )
        run.bind_functaset("classify", functaset)
    result = run.train(task)
    confusion = classification.confusion_matrix(
        result.test["label"], result.test["prediction"], run.config.data.num_classes
    )
    names = np.asarray(functaset.manifest.class_names)
    run.write_arrays("classify", {"confusion": confusion, "class_names": names})
    return result.metrics | {
        "functaset_digest": functaset.manifest.digest,
        "classifier_parameters": sum(leaf.size for leaf in jax.tree.leaves(result.params)),
        "test_examples": int(confusion.sum()),
    }


def generate(run: Run) -> dict[str, Any]:
    """functaset -> new latents"""
    config, settings = run.config, run.config.generate
    with as_user_errors():
        field = run.fitter.field
        params = jax.device_get(load.load_field_params(run.workdir, run.fitter))
        functaset = reader.open_functaset(run.workdir / "functaset", field_digest=digest(params))
        logits = load.load_classifier(functaset, run.workdir)
        decode = make_decoder(field, params, batch_size=settings.sample_batch_size)
        generator = build_generator(settings, functaset, num_classes=config.data.num_classes)
        task = builders.build_generation(
            config,
            functaset,
            generator=generator,
            decode=decode,
            devices=run.mesh.size,
            **run.processes,
        )
        run.bind_functaset("generate", functaset)
    result = run.train(task)
    trained = TrainedGenerator(
        generator=generator,
        params=mesh.to_host(result.params),
        fitter=run.fitter,
        field_params=params,
        functaset=functaset,
    )

    samples = _evaluation_samples(run, trained)
    rate = samples.write(
        say=run.say,
        stop=lambda: run.raise_if_stopping("generate stopped; complete samples are kept"),
        **run.processes,
    )
    metrics = result.metrics | {
        "functaset_digest": functaset.manifest.digest,
        "generator_parameters": sum(leaf.size for leaf in jax.tree.leaves(trained.params)),
        "samples": len(samples.labels),
        "samples_per_second": rate,
    }
    processes.barrier("samples")
    if jax.process_index():
        return metrics  # process 0 evaluates
    return metrics | _evaluate_samples(run, trained, samples, decode=decode, logits=logits)


def _evaluation_samples(run: Run, trained: TrainedGenerator) -> EvaluationSamples:
    """The samples to evaluate, with the labels of the first test examples."""
    settings, functaset = run.config.generate, trained.functaset
    count = min(settings.samples, functaset.num_examples("test"))
    return EvaluationSamples(
        directory=run.workdir / "generate" / "samples",
        generator=trained.generator,
        params=trained.params,
        key=rng.stream_key(run.config.seed, "sample"),
        labels=functaset.source("test").read(np.arange(count))["label"],
        guidance_sweep=tuple(settings.guidance_sweep),
        batch_size=settings.sample_batch_size,
    )


def _evaluate_samples(
    run: Run,
    trained: TrainedGenerator,
    samples: EvaluationSamples,
    *,
    decode: Callable[[np.ndarray], np.ndarray],
    logits: Callable[[np.ndarray], np.ndarray],
) -> dict[str, float]:
    """Metrics of the samples; writes the arrays of the report."""
    with as_user_errors():
        evaluator = generation_eval.Evaluator(
            run.config.generate.features,
            trained.functaset,
            sources=run.sources,
            count=len(samples.labels),
            decode=decode,
            classify=lambda latents: logits(latents).argmax(-1),
            num_classes=run.config.data.num_classes,
            seed=run.config.seed,
        )
    latents, sweep = samples.read()
    metrics, arrays = evaluator.evaluate(latents, samples.labels)
    arrays |= evaluator.evaluate_guidance_sweep(sweep, samples.labels)
    arrays |= generation_arrays.inpainting_arrays(trained, run.sources, seed=run.config.seed)
    arrays |= generation_arrays.resolution_arrays(trained, latents)
    run.write_arrays("generate", arrays)
    return metrics


STAGES: dict[str, Callable[[Run], dict[str, Any]]] = {
    "meta_learn": meta_learn,
    "encode": encode,
    "classify": classify,
    "generate": generate,
}
