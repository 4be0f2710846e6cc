"""Two network namespaces as two hosts, and a link between them that fails."""

import os
import shutil
import subprocess
import time
import uuid

import pytest

from tests.pipeline import failures_test
from tests.pipeline.failures_test import META

CABLE = "cable"  # name of both ends of the link
END_SECONDS = 90  # in which both processes must end: 60 s without heartbeats, and some more


def ip(*arguments):
    return subprocess.run(
        ["ip", *map(str, arguments)], capture_output=True, text=True, timeout=30, check=True
    )


class Hosts:
    """Two namespaces, 10.77.0.1 and 10.77.0.2, joined by a link."""

    def __init__(self):
        self.names = [f"functa-{uuid.uuid4().hex[:8]}" for _ in range(2)]

    def make(self):
        for name in self.names:
            ip("netns", "add", name)
        first, second = self.names
        ip("link", "add", CABLE, "netns", first, "type", "veth", "peer", CABLE, "netns", second)
        for number, name in enumerate(self.names, start=1):
            ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", CABLE)
            ip("-n", name, "link", "set", "lo", "up")
        self.link("up")

    def link(self, state):
        for name in self.names:
            ip("-n", name, "link", "set", CABLE, state)

    def inside(self):
        """Commands that start a program in each. Gloo resolves the host's name, so that is the address."""
        named = 'hostname "$0" && exec "$@"'
        return [
            ["ip", "netns", "exec", name, "unshare", "--uts", "sh", "-c", named, f"10.77.0.{k}"]
            for k, name in enumerate(self.names, start=1)
        ]

    def remove(self):
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


@pytest.fixture
def hosts():
    if os.geteuid() or not (shutil.which("ip") and shutil.which("unshare")):
        pytest.skip("network namespaces need root, ip and unshare")
    hosts = Hosts()
    try:
        try:
            hosts.make()
            subprocess.run([*hosts.inside()[0], "true"], check=True, capture_output=True)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces here: {error.stderr}")
        yield hosts
    finally:
        hosts.remove()


@pytest.mark.slow
def test_cut_link_ends_both_processes_and_the_run_resumes(program_env, tmp_path, hosts):
    settings = {"log_every": 100, "checkpoint_every": 100, "eval_every": 1500}
    command = (*META, *(f"--config.meta_learn.{name}={n}" for name, n in settings.items()))
    network = {"coordinator": "10.77.0.1:8476", "inside": hosts.inside()}
    run = tmp_path / "run", {"*": {"toy": 1500}}, *command

    with failures_test.start(program_env, *run, **network) as group:
        group.wait_for("step 500/")
        hosts.link("down")
        begin = time.monotonic()
        statuses = group.wait(60)
        assert time.monotonic() - begin < END_SECONDS, group.output()
        first, second = (log.read_text() for log in group.logs)
    assert all(statuses), statuses
    assert "stopped sending heartbeats):\n1\n" in first
    assert "process 0 has not answered for" in second

    hosts.link("up")
    with failures_test.start(program_env, *run, **network) as group:
        assert group.wait(120) == [0, 0], group.output()
        for log in group.logs:
            output = log.read_text()
            assert "resumes at step" in output
            assert "step 1500/1500" in output
