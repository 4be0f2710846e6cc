"""Arguments of launch/dashboard.sh, and those that it passes to TensorBoard."""

import shutil

import pytest

TENSORBOARD = '#!/bin/sh\nprintf "%s\\n" "$@"\n'


@pytest.fixture(autouse=True)
def programs(project):
    for command in ("sort", "uniq"):
        (project.bin / command).symlink_to(shutil.which(command))
    for run in ("a b", "c", "more/c", "d,e"):
        (project.folder / run).mkdir(parents=True)


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        ([], "usage:"),
        (["missing/run"], "missing/run"),
        (["c", "missing/run"], "missing/run"),
        (["c", "--port"], "--port"),
        (["c", "--port", "0"], "--port 0"),
        (["c", "--port=65536"], "--port 65536"),
        (["c", "--prot", "1"], "--prot"),
        (["c", "d,e"], "d,e"),  # TensorBoard separates several runs by commas
    ],
)
def test_invalid_arguments_are_refused(project, arguments, key):
    project.add("tensorboard", TENSORBOARD)
    result = project.run("dashboard.sh", *arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert key in result.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["a b"], ["--logdir", "a b"]),
        (["d,e"], ["--logdir", "d,e"]),
        (["a b/", "c", "--port", "81"], ["--logdir_spec", "a b:a b,c:c", "--port", "81"]),
        (["c", "more/c"], ["--logdir_spec", "c:c,more/c:more/c"]),
    ],
)
def test_tensorboard_gets_the_runs_and_a_local_address(project, arguments, expected):
    project.add("tensorboard", TENSORBOARD)
    result = project.run("dashboard.sh", *arguments)
    assert result.stdout.splitlines() == ["--host", "127.0.0.1", *expected]


def test_tensorboard_of_the_project_is_preferred(project):
    result = project.run("dashboard.sh", "c")
    assert result.returncode == 2
    assert "tensorboard" in result.stderr
    project.add("tensorboard", "#!/bin/sh\nexit 1\n")
    (project.root / ".venv/bin").mkdir(parents=True)
    own = project.root / ".venv/bin/tensorboard"
    own.write_text(TENSORBOARD)
    own.chmod(0o755)
    assert project.run("dashboard.sh", "c").stdout.splitlines()[-1] == "c"
