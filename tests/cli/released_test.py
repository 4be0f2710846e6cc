"""Commands take the name of a released model in place of a run."""

import pytest

from functa.cli.main import main


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize(
    "words",
    [
        ["verify", "digits", "--sample=10%"],
        ["decode", "digits", "--split=test", "--ids=0-2", "--out=decoded"],
        ["export", "digits", "--to=npz", "--out=arrays"],
        ["sample", "digits", "--count=3", "--steps=2", "--out=samples"],
        ["sample", "digits", "--interpolate=test:1,test:2", "--steps=2", "--out=path"],
        [
            "inpaint",
            "digits",
            "--task=half",
            "--images=2",
            "--samples=1",
            "--steps=2",
            "--out=half",
        ],
        ["analyse", "digits", "--measure=steps", "--images=8"],
    ],
)
def test_a_command_takes_the_name_of_a_model(words, cache, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.chdir(tmp_path)
    assert main(words) == 0


def test_inspect_writes_its_sheet_here(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.chdir(tmp_path)
    assert main(["inspect", "digits", "--images=4"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["digits_test.png"]


def test_data_of_a_model_is_looked_for_where_the_user_says(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for words in (["verify"], ["inspect"], ["export", "--to=npz", "--out=x"]):
        command = [words[0], "cifar10_spatial", *words[1:], "--data-dir=elsewhere"]
        assert main(command) == 2
        assert "elsewhere" in capsys.readouterr().err


def test_a_model_has_no_evaluated_samples(tmp_path, capsys):
    assert main(["export", "digits", "--to=png", f"--out={tmp_path / 'png'}"]) == 2
    assert "functa sample" in capsys.readouterr().err


def test_a_misspelt_command_gets_a_suggestion(capsys):
    with pytest.raises(SystemExit) as error:
        main(["encod"])
    assert error.value.code == 2
    assert "encode" in capsys.readouterr().err
