"""The pages that are written from the code are up to date, and name every key."""

from functa.configs import common
from functa.runtime.config import flatten, to_dict
from tools import docs


def test_pages_are_up_to_date():
    assert docs.main(["--check"]) == 0


def test_every_key_has_a_meaning():
    rows = [line.split("|") for line in docs.config_page().splitlines() if line.startswith("| `")]
    meanings = {row[1].strip(" `"): row[3].strip() for row in rows}
    keys = {key for key in flatten(to_dict(common.base())) if ".model." not in key}
    assert keys <= meanings.keys()
    assert not [key for key in keys if not meanings[key]]
