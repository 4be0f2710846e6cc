"""The README's commands, run as written but for the places they read and write."""

import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()
LINES = [
    re.sub(r"\s+#.*", "", line)
    for block in re.findall(r"```bash\n(.*?)```", README, re.S)
    for line in block.splitlines()
    if line.strip()
]


@pytest.fixture(scope="module")
def run_directory(finished, tmp_path_factory):
    """A copy: tools may write into a run."""
    return shutil.copytree(finished[0], tmp_path_factory.mktemp("readme") / "run")


def run(line, env, run_directory, tmp_path):
    line = line.replace(".venv/bin/python", sys.executable)
    line = line.replace(".venv/bin/functa", f"{sys.executable} -m functa.cli")
    line = line.replace("runs/digits", str(run_directory))
    line = re.sub(r"--out=(\w+)", rf"--out={tmp_path}/\1", line)
    return subprocess.run(
        shlex.split(line),
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_nothing_is_left_to_fill_in():
    assert not re.findall(r"\b(?:[A-Z]+_ROW|TODO|FIXME|XXX)\b", README)


def test_there_are_commands():
    assert len(LINES) >= 8


@pytest.mark.parametrize(
    "line",
    [line for line in LINES if re.search(r"tools/|bin/functa.*runs/", line) and "runs/" in line],
)
def test_tools(line, program_env, run_directory, tmp_path):
    result = run(line, program_env, run_directory, tmp_path)
    assert result.returncode == 0, result.stderr
    if "decode.py" in line:
        assert len(list((tmp_path / "decoded").glob("*.png"))) == 3
    if "sample.py" in line:
        assert (tmp_path / "samples" / "film.gif").exists()


def test_preparing_arrays(program_env, tmp_path, run_directory):
    """The last of the sources; the original archives have tests of their own."""
    (line,) = [line for line in LINES if "functa prepare mine" in line]
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True)
        for index in range(10):
            pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"{index}.png")
    line = line.replace("FOLDER", str(tmp_path / "photos")).replace(
        "=data", f"={tmp_path / 'data'}"
    )
    result = run(line, program_env, run_directory, tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "data" / "mine").is_dir()


@pytest.mark.parametrize("line", [line for line in LINES if "functa.main" in line])
def test_the_long_command_is_understood(line, program_env, run_directory, tmp_path):
    """Without the data it gets as far as asking for it, and for nothing else."""
    words = shlex.split(line)
    assert words[0] == "python"
    words = [sys.executable, *words[1:], f"--config.data.data_dir={tmp_path}"]
    result = subprocess.run(
        words, cwd=ROOT, env=program_env, capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 2
    assert len(re.findall(r"^  - ", result.stderr, re.M)) == 1
    assert "functa prepare" in result.stderr


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("./")])
def test_scripts_exist_and_know_their_arguments(line):
    script, *words = shlex.split(line)
    assert (ROOT / script).is_file()
    if script.endswith("local.sh"):
        assert (ROOT / "configs" / f"{words[0].split(':')[0]}.py").is_file()


def test_the_snippet_reads_a_functaset_without_this_software(program_env, run_directory):
    (snippet,) = re.findall(r"```python\n(.*?)```", README, re.S)
    snippet = snippet.replace("runs/digits", str(run_directory))
    snippet += (
        "\nimport sys; row = source[0]['latents']; assert row.shape == (2, 2, 8), row.shape"
        "\nassert row.dtype == 'float16' and not {'functa', 'tensorflow', 'jax'} & set(sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", snippet],
        cwd="/",
        env=program_env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
