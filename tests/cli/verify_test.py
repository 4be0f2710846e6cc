"""`functa verify`: exit status and what it prints."""

import pytest

from functa.cli import main as cli


@pytest.fixture
def run(stub_run):
    """Directory of a run with a functaset and a field."""
    return stub_run[0]


def verify(*arguments):
    return cli.main(["verify", *map(str, arguments)])


def test_an_undamaged_functaset(run, capsys):
    for path in (run, run / "functaset"):
        assert verify(path, f"--field={run}") == 0
        assert "80 records in 6 shards" in capsys.readouterr().out


@pytest.mark.parametrize("sample", ["10%", "0.1"])
def test_a_sample_states_what_is_not_checked(run, capsys, sample):
    assert verify(run, f"--sample={sample}") == 0
    output = capsys.readouterr().out
    assert "6 shards, all bytes of 1 shards, 9 records" in output  # 2, 2, 1 of train, 1, 2 and 1
    assert "not checked: the bytes of 5 shards, 71 records" in output


def test_a_damaged_file_is_named(run, capsys):
    file = run / "functaset" / "functaset-train.array_record-00001-of-00003"
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 4
    file.write_bytes(content)
    assert verify(run) == 1
    output = capsys.readouterr()
    assert output.out.startswith(f"{file} is damaged")
    assert output.err.endswith(": 1\n")


def test_another_field_is_a_problem(run, other_field, capsys):
    assert verify(run, f"--field={run}") == 1
    output = capsys.readouterr().out
    assert all(digest in output for digest in other_field)


def test_wrong_arguments(run, capsys):
    assert verify(run / "no") == 2
    assert str(run / "no") in capsys.readouterr().err
    assert verify(run, "--field=elsewhere") == 2
    assert "elsewhere" in capsys.readouterr().err
    for arguments in ([], *([run, f"--sample={part}"] for part in ("0", "101%", "1.5", "some"))):
        with pytest.raises(SystemExit) as error:
            verify(*arguments)
        assert error.value.code == 2
