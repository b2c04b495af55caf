"""What all tests share. Nothing here imports synalinks: most tests don't need it, and it takes seconds."""

from __future__ import annotations

import os
import signal

import pytest

from tests.support.fork_server import OfferedServer

# synalinks' litellm would otherwise try to fetch a price list when it is imported.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

# A shell starts jobs in the background with SIGINT ignored. The processes of the tests would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The files that take longest come first, so that the last ones to run are short and all workers end together. The first
# four keep each worker busy, and only one of them imports synalinks, which the others then find compiled.
SLOWEST = (
    "integration/test_exact_resume.py",
    "integration/test_cli_redis.py",
    "contract/test_storage_appends.py",
    "unit/test_promises.py",
    "integration/test_demo.py",
    "integration/test_preemption.py",
    "integration/test_redis_fit.py",
    "integration/test_simulation.py",
    "integration/test_resumed_data.py",
    "integration/test_followers.py",
    "integration/test_interruptions.py",
    "integration/test_journal.py",
    "integration/test_chaos.py",
    "integration/test_object_storage.py",
    "integration/test_process_exit.py",
    "integration/test_differences.py",
    "integration/test_kept_state.py",
    "integration/test_preempted_workers.py",
    "integration/test_standby.py",
    "integration/test_redis_faults.py",
    "integration/test_redis_lease.py",
    "integration/test_test_servers.py",
    "integration/test_readme.py",
    "integration/test_host_compatibility.py",
    "integration/test_redis_topologies.py",
    "unit/test_cli_journal.py",
    "contract/test_stores.py",
    "contract/test_storages.py",
    "contract/test_journals.py",
    "deploy/test_job_controller.py",
    "deploy/test_train.py",
    "integration/test_store_crash.py",
    "integration/test_storage_appends.py",
    "integration/test_responses.py",
    "unit/test_cli_program.py",
    "unit/test_journal_pruning.py",
)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(config: pytest.Config) -> None:
    """Offer one fork server to all workers."""
    config.add_cleanup(OfferedServer().close)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the files of `SLOWEST` to the front, in its order."""
    rank = {name: place for place, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: rank.get("/".join(item.path.parts[-2:]), len(rank)))
