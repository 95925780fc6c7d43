"""What is promised about crashes and faults, kept on CephFS by daemons of two hosts.

The tests are those of the local disk. The environment variables that set their amounts do so here.
"""

from __future__ import annotations

import pytest

from tests.crash.test_error_at_every_step import test_error_at_each_call
from tests.crash.test_histories import test_what_clients_see_has_one_explanation
from tests.crash.test_kill_at_every_step import (
    test_killed_as_a_whole_daemon,
    test_killed_at_each_call,
    test_killed_at_each_call_of_a_start,
)
from tests.crash.test_random_kills import test_nothing_acknowledged_is_lost_or_torn_by_kills
from tests.storage.test_machine import test_two_storages_do_as_the_model_does

__all__ = [
    "test_error_at_each_call",
    "test_killed_as_a_whole_daemon",
    "test_killed_at_each_call",
    "test_killed_at_each_call_of_a_start",
    "test_nothing_acknowledged_is_lost_or_torn_by_kills",
    "test_two_storages_do_as_the_model_does",
    "test_what_clients_see_has_one_explanation",
]

pytestmark = pytest.mark.cephfs
