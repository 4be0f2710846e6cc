"""A trained field and 40 images to measure it on."""

import pytest

from tests.support import analysis_runs


@pytest.fixture(scope="package")
def run(tmp_path_factory):
    """(config, params, image sources)."""
    return analysis_runs.make(tmp_path_factory.mktemp("analysis") / "run")


@pytest.fixture(scope="package")
def subject(run):
    return analysis_runs.make_trained_field(*run)
