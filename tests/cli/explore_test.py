"""The command `functa explore`: what it refuses, whom it answers and how it ends."""

import http.client
import re
import signal
import socket
import subprocess
import sys

import pytest

from functa.cli import explore
from functa.cli.main import main
from tests.conftest import ROOT
from tests.support import generator_runs


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return generator_runs.make(tmp_path_factory.mktemp("explore") / "run")


@pytest.fixture
def refusal(capsys, monkeypatch):
    """Runs the command, which must not serve, and returns its message."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr("uvicorn.Server.run", lambda *_, **__: pytest.fail("the server runs"))

    def call(*arguments):
        assert main(["explore", *map(str, arguments)]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("functa explore: ")
        return err

    return call


def test_directory_without_a_run_is_refused(tmp_path, refusal):
    assert str(tmp_path) in refusal(tmp_path)


def test_config_of_another_version_is_refused(run, tmp_path, refusal):
    for part in ("meta_learn", "functaset"):
        (tmp_path / part).symlink_to(run / part)
    text = (run / "config.json").read_text().replace('"interpolation"', '"lookup"')
    (tmp_path / "config.json").write_text(text)
    assert "interpolation" in refusal(tmp_path)


def test_used_or_impossible_port_is_refused(run, refusal):
    with socket.create_server(("127.0.0.1", 0)) as used:
        port = used.getsockname()[1]
        assert f":{port} " in refusal(run, f"--port={port}")
    assert "--port" in refusal(run, "--port=65536")


def test_default_is_the_first_free_port():
    with explore.listen(None) as first, explore.listen(None) as second:
        addresses = [each.getsockname() for each in (first, second)]
    assert {host for host, _ in addresses} == {"127.0.0.1"}
    assert 6106 <= addresses[0][1] < addresses[1][1]


@pytest.mark.parametrize("name", ["gradio", "uvicorn"])
def test_missing_extra_names_the_command_that_installs_it(run, refusal, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    message = refusal(run)
    assert name in message
    assert "pip install" in message


def get(port, path, host):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("GET", path, headers={"Host": host})
        return connection.getresponse().status
    finally:
        connection.close()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_page_is_served_to_this_machine_until_a_signal(run, program_env, number):
    command = [sys.executable, "-m", "functa.cli", "explore", str(run)]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with subprocess.Popen(command, env=program_env, cwd=ROOT, **pipes) as process:
        try:
            line = process.stdout.readline()
            port = int(re.match(r"http://127\.0\.0\.1:(\d+)/ ", line)[1])
            assert get(port, "/", f"127.0.0.1:{port}") == 200
            assert get(port, "/", "functa.example") == 400
            assert get(port, f"/gradio_api/file={ROOT}/setup.cfg", "localhost") in (403, 404)
            process.send_signal(number)
            assert process.communicate(timeout=60) == ("", "")
            assert process.returncode == 0
        finally:
            process.kill()
