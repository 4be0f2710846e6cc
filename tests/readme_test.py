"""The commands of the README run as written, except for the paths they read and write."""

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
COMMANDS = re.findall(r"`functa (\w+)`", README)


def run(words, env, **options):
    defaults = dict(cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    return subprocess.run(words, env=env, **(defaults | options))


def test_first_command_names_a_config():
    script, config = shlex.split(LINES[0])
    assert (ROOT / script).is_file()
    assert (ROOT / "configs" / f"{config}.py").is_file()


@pytest.mark.parametrize("line", [line for line in LINES if re.match(r"[./\w=…:]*\S*\.sh ", line)])
def test_scripts_exist(line):
    script = next(word for word in shlex.split(line) if word.endswith(".sh"))
    assert (ROOT / script).is_file()


def test_prepare_makes_a_data_set_of_a_folder(program_env, tmp_path):
    (line,) = [line for line in LINES if line.startswith("functa prepare mine")]
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
    _, *words = shlex.split(line)
    result = run([sys.executable, "-m", "functa.cli", *words], program_env)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "data" / "mine").is_dir()


@pytest.mark.parametrize("line", [line for line in LINES if "functa.main" in line])
def test_run_asks_only_for_its_data(line, program_env, tmp_path):
    words = [sys.executable, *shlex.split(line)[1:], f"--config.data.data_dir={tmp_path}"]
    words = [word.replace("runs/try", str(tmp_path / "run")) for word in words]
    result = run(words, program_env)
    assert result.returncode == 2
    assert len(re.findall(r"^  - ", result.stderr, re.M)) == 1
    assert "functa prepare" in result.stderr


@pytest.mark.parametrize("command", sorted(set(COMMANDS)))
def test_sub_commands_have_help(command, program_env):
    result = run([sys.executable, "-m", "functa.cli", command, "--help"], program_env)
    assert result.returncode == 0, result.stderr
    assert f"functa {command}" in result.stdout


def test_python_example(finished, program_env, tmp_path):
    (example,) = re.findall(r"```python\n(.*?)```", README, re.S)
    run_directory = shutil.copytree(finished[0], tmp_path / "run")
    example = example.replace("runs/digits", str(run_directory))
    example += "\nassert large.shape == (16, 128, 96, 1) and new.shape == latents.shape"
    result = run([sys.executable, "-c", example], program_env)
    assert result.returncode == 0, result.stderr
