"""tools/verify_functaset.py."""

import importlib.util
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from functa.pipeline import load as trained
from functa.training import checkpoint
from tests.cli.conftest import PARAMS, StubField

ROOT = pathlib.Path(__file__).resolve().parents[2]


def load(name):
    spec = importlib.util.spec_from_file_location(f"tools_{name}", ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


verify_functaset = load("verify_functaset")


def refusal(main, arguments, capsys):
    """What a tool says when it ends with status 2."""
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    assert caught.value.code == 2
    return capsys.readouterr().err


# --- verify_functaset


def test_verify_passes_what_is_as_written(stub_run, capsys):
    directory, _ = stub_run
    for path in (directory, directory / "functaset"):
        assert verify_functaset.main([str(path)]) == 0
        assert "80 records in 6 shards are as written" in capsys.readouterr().out
    assert verify_functaset.main([str(directory), "--field", str(directory)]) == 0


@pytest.mark.parametrize("sample", ["10%", "0.1"])
def test_verify_of_a_sample_says_what_it_did_not_check(stub_run, capsys, sample):
    directory, _ = stub_run
    assert verify_functaset.main([str(directory), f"--sample={sample}"]) == 0
    output = capsys.readouterr().out
    assert "nothing wrong in a sample" in output
    assert "that all 6 shards are there and have their sizes; all bytes of 1 of them" in output
    assert "; 9 records, some of each shard" in output  # 2, 2, 1 of train, 1, 2 and 1
    assert "not checked: the digests of 5 others, 71 records" in output


def test_verify_names_a_damaged_file_and_returns_1(stub_run, program_env):
    directory, _ = stub_run
    file = directory / "functaset" / "functaset-train.array_record-00001-of-00003"
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 4
    file.write_bytes(content)
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "verify_functaset.py"), str(directory)],
        env=program_env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert done.stdout.startswith(f"{file} is damaged: its digest is sha256:")
    assert "1 problem" in done.stderr


def test_verify_finds_a_wrong_field(stub_run, capsys, monkeypatch):
    directory, _ = stub_run
    other = {"field": {"weight": np.float32([1, 2, 3])}, "inner_lrs": np.float32([1, 2, 3])}
    monkeypatch.setattr(trained, "load_field", lambda workdir: (StubField(), other))
    assert verify_functaset.main([str(directory), "--field", "elsewhere"]) == 1
    output = capsys.readouterr().out
    assert checkpoint.digest(other) in output
    assert checkpoint.digest(PARAMS) in output


def test_verify_refuses_bad_arguments(stub_run, capsys):
    directory, _ = stub_run
    assert "is not a directory" in refusal(verify_functaset.main, [directory / "no"], capsys)
    message = refusal(verify_functaset.main, [directory, "--field", "elsewhere"], capsys)
    assert "elsewhere has no field" in message
    for sample in ("0", "101%", "1.5", "some"):
        message = refusal(verify_functaset.main, [directory, f"--sample={sample}"], capsys)
        assert "a sample looks like 1% or 0.01" in message
    refusal(verify_functaset.main, [], capsys)
