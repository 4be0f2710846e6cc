"""User errors at the command line: one clear line, exit status 2, nothing written."""

import math

import pytest

from functa.configs import digits
from functa.data import images
from functa.pipeline import runner, validation
from functa.runtime import errors, memory

TINY = "--config=configs/digits.py:tiny"


def lines(result):
    return result.stderr.strip().splitlines()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--config=configs/NAME.py"),
        (["--config=configs/digit.py"], "digit.py"),
        (["--config=configs/digits.py:tinny"], "unknown option 'tinny'"),
        ([TINY, "--config.field.widht=3"], "unknown config key widht; did you mean width?"),
        ([TINY, "--config.field.zzzzz=3"], "unknown config key zzzzz"),
        ([TINY, "--config.field.width=wide"], "wide"),
        ([TINY, "--confg.seed=3"], "confg"),
        ([TINY, "extra"], "unknown arguments: extra"),
    ],
)
def test_wrong_command_line_is_reported_in_one_line(run_main, tmp_path, arguments, message):
    result = run_main(*arguments, *([f"--workdir={tmp_path / 'run'}"] if arguments else []))
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert len(lines(result)) <= 3
    assert not (tmp_path / "run").exists()


def test_all_problems_of_a_config_are_reported_at_once(run_main, tmp_path):
    result = run_main(
        TINY,
        f"--workdir={tmp_path / 'run'}",
        "--config.field.latent_shape=(3,2,8)",
        "--config.meta_learn.batch_size=0",
        "--config.meta_learn.micro_batches=3",
        "--config.classify.micro_batches=0",
        "--config.data.num_classes=5",
        "--config.encode.dtype=float15",
        "--config.classify.optimizer.name=adamm",
        "--config.data.validation_examples=99999",
        "--config.seed=-1",
        "--config.classify.mixup=-2.0",
        "--config.classify.normalization=sphered",
        "--config.classify.cache=disk",
        "--config.field.width=0",
        "--config.inner_loop.steps=0",
        "--config.meta_learn.optimizer.name=mion",
    )
    assert result.returncode == 2
    for message in (
        "3x2",
        "meta_learn.batch_size=0",
        "classify.micro_batches=0",
        "num_classes",
        "float15",
        "adamm",
        "validation_examples",
        "seed=-1",
        "classify.mixup=-2.0",
        "sphered",
        "classify.cache='disk'",
        "field.width=0",
        "inner_loop.steps=0",
        "meta_learn.optimizer.name='mion'",
        "classify.optimizer.name='adamm'",
    ):
        assert message in result.stderr, message
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()


def test_unstable_first_step_is_rejected_before_anything_is_written(run_main, tmp_path):
    workdir = f"--workdir={tmp_path / 'run'}"
    result = run_main(TINY, workdir, "--config.inner_loop.initial_lr=3.0")
    assert result.returncode == 2
    assert "initial_lr" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()


def test_missing_data_names_the_directory_and_the_command(run_main, tmp_path):
    result = run_main(
        "--config=configs/mnist.py:tiny",
        f"--workdir={tmp_path / 'run'}",
        f"--config.data.data_dir={tmp_path / 'nowhere'}",
    )
    assert result.returncode == 2
    assert str(tmp_path / "nowhere") in result.stderr
    assert "functa prepare" in result.stderr


def test_unknown_config_is_reported_with_the_known_ones(run_main, tmp_path):
    result = run_main("--config=configs/imagnet.py:tiny", f"--workdir={tmp_path / 'run'}")
    assert result.returncode == 2
    (line,) = lines(result)
    assert "configs/imagnet.py" in line
    assert "cifar10_functa, " in line
    assert "common" not in line
    result = run_main("--config=/nowhere/my.py", f"--workdir={tmp_path / 'run'}")
    (line,) = lines(result)
    assert "/nowhere/my.py" in line


def test_stage_without_its_input_is_rejected(run_main, tmp_path):
    result = run_main(TINY, f"--workdir={tmp_path / 'run'}", "--config.stages=('classify',)")
    assert result.returncode == 2
    assert "classify needs meta_learn" in result.stderr
    result = run_main(TINY, f"--workdir={tmp_path / 'run'}", "--config.stages=('clasify',)")
    assert "unknown stage 'clasify'" in result.stderr


def test_workdir_below_a_file_is_rejected(run_main, tmp_path):
    (tmp_path / "file").write_text("")
    result = run_main(TINY, f"--workdir={tmp_path / 'file' / 'run'}")
    assert result.returncode == 2
    assert str(tmp_path / "file") in result.stderr
    assert "Traceback" not in result.stderr


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
        runner.run_stages(config, tmp_path / "run", say=print)
    assert len(measured) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("status", ["many", "-1", "256"])
def test_invalid_stopped_status_is_rejected(run_main, tmp_path, status):
    arguments = ("--config=configs/digits.py:tiny", f"--workdir={tmp_path / 'run'}")
    result = run_main(*arguments, env={"FUNCTA_STOPPED_STATUS": status})
    assert result.returncode == 2
    assert f"FUNCTA_STOPPED_STATUS={status}" in result.stderr
