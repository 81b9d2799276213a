"""The roll call before a run of several processes: threads stand for the processes."""

import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from mdm_jax.train.hosts import Cluster, MissingHostsError, find_cluster, roll_call

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


@pytest.fixture
def address():
    with socket.create_server(("localhost", 0)) as server:
        return f"localhost:{server.getsockname()[1]}"


def called(address, numbers, *, of, timeout=20.0):
    """What each of the given processes gets back, or the error it ends with."""

    def one(number):
        try:
            return roll_call(Cluster(address, of, number), timeout, name=f"host-{number}")
        except (OSError, ValueError) as error:
            return error

    with ThreadPoolExecutor(len(numbers)) as pool:
        return list(pool.map(one, numbers))


def test_everyone_learns_who_is_there(address):
    names = [f"host-{number}" for number in range(4)]
    assert called(address, [3, 0, 1, 2], of=4) == [names] * 4
    # The port is free at once, for JAX's service.
    port = int(address.rpartition(":")[2])
    socket.create_server(("", port)).close()


def test_everyone_learns_who_is_missing(address):
    errors = called(address, [0, 2], of=4, timeout=1.0)
    for error in errors:
        assert isinstance(error, MissingHostsError)
        assert f"process 1, 3 of 4 did not come to {address} within 1 s" in str(error)
        assert "here are 0 (host-0), 2 (host-2)" in str(error)


def test_process_0_is_missing(address):
    (error,) = called(address, [1], of=2, timeout=0.5)
    assert isinstance(error, MissingHostsError)
    assert f"process 0 of 2 did not answer at {address} within 0.5 s" in str(error)
    assert "here is 1 (host-1)" in str(error)


def test_one_number_twice_and_another_count(address):
    errors = called(address, [0, 1, 1], of=3)
    assert all(
        "host-1 and host-1 both say they are process 1: give every" in str(e) for e in errors
    )
    with ThreadPoolExecutor(2) as pool:
        both = pool.map(lambda of: called(address, [of - 2], of=of)[0], (2, 3))
    assert ["host-1 counts 3 processes, process 0 counts 2" in str(e) for e in both] == [True] * 2


def test_strangers_and_those_who_leave_do_not_count(address):
    host, _, port = address.rpartition(":")
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(called, address, [0], of=2)
        for greeting in (b"GET / HTTP/1.1\r\n\r\n", b'{"greeting": "mdm_jax roll call 1"', b""):
            while True:
                try:
                    stranger = socket.create_connection((host, int(port)))
                    break
                except ConnectionRefusedError:
                    assert first.running()
            stranger.sendall(greeting)
            stranger.close()
        assert called(address, [1], of=2) == first.result() == [["host-0", "host-1"]]


def test_a_taken_port_is_named(address):
    port = int(address.rpartition(":")[2])
    with socket.create_server(("", port)):
        (error,) = called(address, [0], of=2, timeout=0.3)
    assert f"process 0 cannot listen at port {port}" in str(error)


def test_flags_come_before_the_environment(monkeypatch):
    for variable, value in zip(VARIABLES, ("b:7", "3", "2"), strict=True):
        monkeypatch.setenv(variable, value)
    assert find_cluster() == Cluster("b:7", 3, 2)
    assert find_cluster("a:1", 5, 0) == Cluster("a:1", 5, 0)
    monkeypatch.setenv("JAX_PROCESS_ID", "first")
    with pytest.raises(ValueError, match="JAX_PROCESS_ID='first': expected a number"):
        find_cluster()


def test_the_scheduler_is_asked(monkeypatch):
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(ValueError, match=r"coordinator, num_processes, process_id not given.*--"):
        find_cluster()
    with pytest.raises(ValueError, match=r"process_id not given.*pass --process_id"):
        find_cluster("a:1", 2)
    with pytest.raises(ValueError, match="coordinator='a': expected host:port"):
        find_cluster("a", 2, 0)
    slurm = {"JOB_ID": "7", "NTASKS": "2", "PROCID": "1", "LOCALID": "0"}
    for name, value in slurm.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("SLURM_STEP_NODELIST", "tpu[3-4]")
    found = find_cluster()
    assert found.coordinator.startswith("tpu3:")
    assert found[1:] == (2, 1, (0,))
