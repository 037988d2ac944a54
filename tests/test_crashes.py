"""A part of `make crashes`: no crash loses an accepted message or brings back a delivered one; and it would be seen."""

import pytest

from crashes.__main__ import explore, life

pytestmark = pytest.mark.needs("strace")


@pytest.fixture(scope="module")
def lived():
    return life(1)


def test_no_crash_loses_a_message_or_brings_one_back(lived):
    tried, wrong = explore(*lived)
    assert tried > 1500 and wrong == []


@pytest.mark.parametrize("of", ["/journal/00", "/journal", "/pictures/", "/pictures", "/failed/", "/failed"])
def test_a_sync_that_is_missing_is_noticed(lived, of):
    """Those of files where `of` goes on behind the folder, else that of the folder."""
    calls, folder = lived

    def is_of(call):
        path = call.path.removeprefix(folder)
        return call.kind == "sync" and (path == of if of.count("/") == 1 else path.startswith(of))
    without = [call for call in calls if not is_of(call)]
    assert len(without) < len(calls) and explore(without, folder)[1]
