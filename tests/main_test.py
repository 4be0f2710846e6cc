"""User errors at the command line: one clear line, exit status 2, nothing written."""

import math

import pytest

from functa.configs import digits
from functa.data import images
from functa.pipeline import runner, validation
from functa.pipeline.run import Run
from functa.runtime import errors, memory

TINY = "--config=configs/digits.py:tiny"


WRONG_VALUES = {
    "field.latent_shape": "(3,2,8)",
    "field.width": "0",
    "inner_loop.steps": "0",
    "meta_learn.batch_size": "0",
    "meta_learn.optimizer.name": "mion",
    "data.num_classes": "5",
    "data.validation_examples": "99999",
    "encode.dtype": "float15",
    "classify.micro_batches": "0",
    "classify.optimizer.name": "adamm",
    "classify.mixup": "-2.0",
    "classify.normalization": "sphered",
    "classify.cache": "disk",
    "seed": "-1",
}


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (["--config=configs/digit.py"], ["digit.py", "cifar10_functa, "]),
        (["--config=/nowhere/my.py"], ["/nowhere/my.py"]),
        (["--config=configs/digits.py:tinny"], ["'tinny'"]),
        ([TINY, "--config.field.widht=3"], ["widht", "width?"]),
        ([TINY, "--config.field.zzzzz=3"], ["zzzzz"]),
        ([TINY, "--config.field.width=wide"], ["wide"]),
        ([TINY, "--confg.seed=3"], ["confg"]),
        ([TINY, "extra"], ["extra"]),
        ([TINY, "--config.inner_loop.initial_lr=3.0"], ["initial_lr"]),
        ([TINY, "--config.stages=('classify',)"], ["classify", "meta_learn"]),
        ([TINY, "--config.stages=('clasify',)"], ["'clasify'"]),
        (
            ["--config=configs/mnist.py:tiny", "--config.data.data_dir=/nowhere/data"],
            ["/nowhere/data", "functa prepare"],
        ),
        (
            [TINY, *(f"--config.{key}={value}" for key, value in WRONG_VALUES.items())],
            ["3x2", *(key for key in WRONG_VALUES if key != "field.latent_shape")],
        ),
    ],
)
def test_user_errors_are_reported_without_traceback(run_main, tmp_path, arguments, messages):
    result = run_main(*arguments, f"--workdir={tmp_path / 'run'}")
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert all(message in result.stderr for message in messages)
    assert len(result.stderr.splitlines()) <= len(messages) + 2
    assert not (tmp_path / "run").exists()


def test_config_is_required(run_main):
    result = run_main()
    assert result.returncode == 2
    assert "--config" in result.stderr


def test_workdir_below_a_file_is_rejected(run_main, tmp_path):
    (tmp_path / "file").write_text("")
    result = run_main(TINY, f"--workdir={tmp_path / 'file' / 'run'}")
    assert result.returncode == 2
    assert str(tmp_path / "file") in result.stderr


def test_cache_that_does_not_fit_in_memory_is_rejected(monkeypatch):
    config = digits.get_config("tiny")
    sources = images.open_splits(**config.data)
    records = {split: source.num_examples for split, source in sources.items()}
    records["train"] *= config.encode.num_augmentations
    needed = sum(records.values()) * 2 * math.prod(config.field.latent_shape)
    assert config.encode.num_augmentations > 1
    config.classify.update(cache="host", copies="all")
    config.generate.update(cache="host", copies="first")

    def problems():
        return validation.validate(config, lambda: sources, stages=config.stages)

    monkeypatch.setattr(memory, "host_bytes", lambda: needed)
    assert problems() == []
    monkeypatch.setattr(memory, "host_bytes", lambda: needed - 1)
    (problem,) = problems()
    assert problem.startswith("classify.cache=host")
    assert f"{needed:,} bytes" in problem
    monkeypatch.setattr(memory, "host_bytes", lambda: 1)
    assert [problem.split(".")[0] for problem in problems()] == ["classify", "generate"]


@pytest.mark.parametrize("wrong", ["data", "field", "stages"])
def test_first_step_is_not_measured_if_there_are_other_problems(tmp_path, monkeypatch, wrong):
    measured = []
    monkeypatch.setattr(
        validation, "first_step_problems", lambda config: measured.append(config) or []
    )
    config = digits.get_config("tiny")
    assert (
        validation.validate(
            config, lambda: images.open_splits(**config.data), stages=config.stages, first_step=True
        )
        == []
    )
    assert len(measured) == 1
    changes = {
        "data": ("data.max_examples", -1),
        "field": ("field.w0", -1.0),
        "stages": ("stages", ("meta_learn", "foo")),
    }
    with config.unlocked():
        config.update_from_flattened_dict(dict([changes[wrong]]))
    with pytest.raises(errors.UserError):
        runner.run_stages(Run(config, tmp_path / "run", say=print))
    assert len(measured) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("status", ["many", "256"])
def test_invalid_stopped_status_is_rejected(run_main, tmp_path, status):
    result = run_main(TINY, f"--workdir={tmp_path}", env={"FUNCTA_STOPPED_STATUS": status})
    assert result.returncode == 2
    assert f"FUNCTA_STOPPED_STATUS={status}" in result.stderr
