import pytest

from tests.support.launchers import Project


@pytest.fixture
def project(tmp_path):
    launchers = Project(tmp_path)
    launchers.add_python("python3", "3.11")
    return launchers
