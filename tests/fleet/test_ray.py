"""`python -m runners.ray` on a real Ray cluster of several nodes: what is lost with a node, an actor, or the launcher.

The engine is echo. The nodes' GPUs are claimed and not there: Ray only counts them.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from batchfile import Ledger
from batchfile.types import Defaults
from tests.helpers.ledger import BatchRecord, StatusReader, batches, keys, read_heartbeats
from tests.helpers.plan import plan_input
from tests.helpers.settings import load_settings
from tests.helpers.store import DirectoryStore

sys.path.insert(0, str(Path(__file__).parent))
from ray_cluster import Cluster, Node, running

NUM_REQUESTS = 5_000
WAIT_S = 1200.0  # only against a hang: no test depends on a machine's speed
POOLS = ("mistral", "llama-70b")
# 32 at a time and 0.2 s each: nothing is over before it can be killed.
SLOW = {"BATCHFILE_ECHO_SLOTS": "32", "BATCHFILE_ECHO_LATENCY_S": "0.2", "BATCHFILE_LIMITS__GRACE_S": "3"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ray") / "store"


@pytest.fixture(scope="module")
def cluster(store: Path) -> Iterator[Cluster]:
    """Each test orders what it needs, and so replaces what the one before it has left."""
    yield from running(store.parent, **SLOW)


@pytest.fixture
def ledger(store: Path) -> Ledger:
    return Ledger(store=DirectoryStore(store))


def create(ledger: Ledger, batch_id: str, pools: tuple[str, ...], num_requests: int) -> None:
    rows = [
        {
            "custom_id": f"r{n}",
            "params": {"messages": [{"role": "user", "content": f"hello {n}"}]},
            "metadata": {"model_hint": pools[n % len(pools)]},
        }
        for n in range(num_requests)
    ]
    key, routing = keys.input_key(batch_id, "n"), load_settings().routing()
    ledger.store.put(key, "\n".join(map(json.dumps, rows)).encode())
    planned = plan_input(ledger, batch_id, key, routing=routing)
    batches.create(ledger, batches.Draft(batch_id=batch_id, routing=routing, defaults=Defaults()), planned)


def read(ledger: Ledger, batch_id: str) -> BatchRecord:
    batch = batches.read_batch(ledger, batch_id)
    assert batch is not None
    return batch


def until(is_so: Callable[[], object], cluster: Cluster) -> None:
    deadline = time.monotonic() + WAIT_S
    while not is_so():
        if time.monotonic() > deadline:
            pytest.fail(f"it never came: {cluster.logs()[-20_000:]}")
        time.sleep(0.3)


def runners(node: Node, pool: str) -> list[psutil.Process]:
    return [process for process in node.processes("-m runners") if pool in process.cmdline()]


def test_a_node_an_actor_and_the_launcher_are_killed_and_every_result_is_there_once(
    cluster: Cluster, ledger: Ledger
) -> None:
    create(ledger, "b", POOLS, NUM_REQUESTS)
    small, large = cluster.add(CPU=4, GPU=1, small=4), cluster.add(CPU=4, GPU=2)
    up = ["--pool", "mistral=2", "--on", "mistral=small", "--pool", "llama-70b=1", "--gpus", "llama-70b=2"]
    up += ["--engine", "echo", "--store", str(ledger.store.url), "--look", "1", "--metrics-port", "0"]
    cluster.say("up", *up)
    reader = StatusReader(ledger)

    def finished(pool: str) -> int:
        found = reader.read("b")
        assert found is not None
        return found.status.pools[pool].num_finished if found.status.pools else NUM_REQUESTS

    until(lambda: all(finished(pool) > NUM_REQUESTS // 50 for pool in POOLS), cluster)
    llama = runners(large, "llama-70b")
    assert [process.environ()["CUDA_VISIBLE_DEVICES"] for process in llama] == ["0,1"], "two GPUs of one node"
    assert runners(small, "llama-70b") == [], "one GPU is not enough"

    large.kill()
    for victim in [*small.processes("ray::Holder")[:1], *small.processes("ray::Launcher")]:
        victim.kill()
    for victim in cluster.head.processes("ray::Launcher"):
        victim.kill()
    at_kill = finished("llama-70b")
    until(lambda: len(runners(small, "mistral")) == 2, cluster)
    assert at_kill < NUM_REQUESTS // 2, "it was killed in the middle"

    cluster.add(CPU=4, GPU=2)
    until(lambda: read(ledger, "b").state == "ended", cluster)
    results = read(ledger, "b").results
    assert results is not None
    rows = [json.loads(row) for row in b"".join(ledger.store.stream(results.key)).splitlines()]
    assert [row["custom_id"] for row in rows] == [f"r{n}" for n in range(NUM_REQUESTS)]
    assert {row["status"] for row in rows} == {"succeeded"}


@pytest.mark.long
def test_a_pool_goes_from_no_node_to_two_and_back_with_its_work(cluster: Cluster, ledger: Ledger) -> None:
    """Its order replaces the one before: runners of other pools are stopped in order, and take their presence along."""
    up = ["--pool", "llama-70b=0..2", "--on", "llama-70b=elastic", "--gpus", "llama-70b=0", "--idle-exit", "1"]
    up += ["--engine", "echo", "--store", str(ledger.store.url), "--look", "1", "--metrics-port", "0"]
    cluster.say("up", *up)
    until(lambda: not read_heartbeats(ledger), cluster)
    assert cluster.elastic_nodes() == 0

    create(ledger, "c", ("llama-70b",), 2_000)
    until(lambda: cluster.elastic_nodes() == 2, cluster)
    until(lambda: read(ledger, "c").state == "ended", cluster)
    assert read(ledger, "c").reason == "completed"
    until(lambda: not read_heartbeats(ledger) and not cluster.elastic_nodes(), cluster)
    assert cluster.status()["llama-70b"]["holders"] == {}
    cluster.say("down")
    cluster.say("status", code=1)
