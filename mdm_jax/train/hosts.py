"""Who takes part in a run of several processes, and which of them did not come.

`jax.distributed.initialize` waits for all processes and, when one stays away, ends the others
without saying which. So the processes call the roll first, at the address where JAX's coordination
service will listen a moment later: `find_cluster`, `roll_call`, then `jax.distributed.initialize`
with `Cluster.arguments` (launch/train.py).
"""

import json
import logging
import os
import selectors
import socket
import time
from typing import Any, NamedTuple

from jax._src import clusters  # no public name finds the processes without also waiting for them

logger = logging.getLogger(__name__)

_GREETING = "mdm_jax roll call 1"
_MARGIN = 10.0  # seconds that an answer of process 0 may be late
_LONGEST = 65536  # bytes of a message; longer ones are not ours


class MissingHostsError(TimeoutError):
    """Not all processes of the run came in time. The message names those that did not."""


class Cluster(NamedTuple):
    """This process and the run it belongs to.

    Attributes:
        coordinator: "host:port" where process 0 listens.
        processes: how many there are.
        process: which one this is, from 0.
        local_devices: GPUs of this process, where several share a host; None for all.
    """

    coordinator: str
    processes: int
    process: int
    local_devices: tuple[int, ...] | None = None

    def arguments(self) -> dict[str, Any]:
        """Returns what `jax.distributed.initialize` is to be called with.

        Examples:
            >>> Cluster("a:1234", 2, 0).arguments()["process_id"]
            0
        """
        return {
            "coordinator_address": self.coordinator,
            "num_processes": self.processes,
            "process_id": self.process,
            "local_device_ids": self.local_devices,
        }


def find_cluster(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    timeout: float = 300,
) -> Cluster:
    """Finds out who takes part: as given, else from the environment, else from the scheduler.

    What is not given is read from JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID,
    and what is not there is asked of the scheduler, in the way of `jax.distributed.initialize`
    (Cloud TPU, SLURM, Kubernetes, Open MPI).

    Args:
        coordinator: "host:port" of process 0.
        num_processes: how many.
        process_id: which one this is.
        timeout: seconds that asking the scheduler may take.

    Raises:
        ValueError: if something is missing or impossible; the message names the flag.

    Examples:
        >>> find_cluster("a:1234", 2, 1)
        Cluster(coordinator='a:1234', processes=2, process=1, local_devices=None)
        >>> find_cluster("a:1234", 2, 2)
        Traceback (most recent call last):
            ...
        ValueError: process_id=2 with num_processes=2: processes are numbered from 0 to 1
    """
    coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS") or None
    num_processes = _given("JAX_NUM_PROCESSES", num_processes)
    process_id = _given("JAX_PROCESS_ID", process_id)
    devices = os.environ.get("JAX_LOCAL_DEVICE_IDS")
    local = [int(device) for device in devices.split(",")] if devices else None
    found = clusters.ClusterEnv.auto_detect_unset_distributed_params(
        coordinator, num_processes, process_id, local, None, round(timeout)
    )
    coordinator, num_processes, process_id, local = found
    parts = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
    unknown = [name for name, value in parts.items() if value is None]
    if coordinator is None or num_processes is None or process_id is None:
        raise ValueError(
            f"several processes, but {', '.join(unknown)} not given, and no scheduler that jax "
            f"knows was found to ask: pass {', '.join('--' + name for name in unknown)}, or set "
            "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID"
        )
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"coordinator={coordinator!r}: expected host:port, such as 10.0.0.1:1234")
    if not 0 <= process_id < num_processes:
        raise ValueError(
            f"process_id={process_id} with num_processes={num_processes}: processes are numbered "
            f"from 0 to {num_processes - 1}"
        )
    local = None if local is None else tuple(local)
    return Cluster(coordinator, num_processes, process_id, local)


def _given(variable: str, value: int | None) -> int | None:
    """A number that was passed, or that the environment holds."""
    text = os.environ.get(variable)
    if value is not None or not text:
        return value
    if not text.isdigit():
        raise ValueError(f"{variable}={text!r}: expected a number from 0")
    return int(text)


def roll_call(cluster: Cluster, timeout: float, *, name: str | None = None) -> list[str]:
    """Waits until all processes are there; every process must call it.

    Args:
        cluster: from `find_cluster`.
        timeout: seconds to wait for the others. (Processes other than 0 may wait twice as long:
            once for process 0, and then with it for the rest.)
        name: what to call this process in messages; by default its host name.

    Returns:
        The names of the processes, by number.

    Raises:
        MissingHostsError: a TimeoutError, on every process that did come; it names the others.
        ValueError: if two processes have the same number, or disagree on how many there are.
        OSError: if process 0 cannot listen at its address.

    Examples:
        >>> roll_call(Cluster("localhost:1", 1, 0), timeout=1, name="here")
        ['here']
    """
    name = socket.gethostname() if name is None else name
    if cluster.processes == 1:
        return [name]
    answer = (_call if cluster.process == 0 else _report)(cluster, timeout, name)
    if "error" in answer:
        raise (MissingHostsError if answer["late"] else ValueError)(answer["error"])
    logger.info("process %d of %d: %s", cluster.process, cluster.processes, answer["names"])
    return answer["names"]


def _call(cluster: Cluster, timeout: float, name: str) -> dict[str, Any]:
    """Process 0: collects names until all are there, then gives all of them the same answer."""
    deadline = time.monotonic() + timeout
    present: dict[int, tuple[str, socket.socket]] = {}
    with _listener(cluster, deadline) as listener, selectors.DefaultSelector() as ready:
        ready.register(listener, selectors.EVENT_READ)
        trouble = ""
        while len(present) < cluster.processes - 1 and not trouble:
            left = deadline - time.monotonic()
            if left <= 0:
                break
            for key, _ in ready.select(left):
                if key.fileobj is listener:
                    caller, _ = listener.accept()
                    caller.setblocking(False)
                    ready.register(caller, selectors.EVENT_READ, bytearray())
                else:
                    trouble = trouble or _hear(cluster, ready, key, present)
        answer = _answer(cluster, timeout, name, present, trouble)
        callers = [key.fileobj for key in ready.get_map().values() if key.fileobj is not listener]
        for caller in callers:
            _dismiss(caller, answer)
    return answer


def _hear(cluster: Cluster, ready: Any, key: Any, present: dict) -> str:
    """Process 0: takes what one caller sent; returns what is wrong with it, if anything."""
    caller, heard = key.fileobj, key.data
    try:
        received = caller.recv(4096)
    except BlockingIOError:
        return ""
    except OSError:
        received = b""
    heard += received
    if not received or len(heard) > _LONGEST:  # it went away, so it has to come again
        ready.unregister(caller)
        caller.close()
        for process in [process for process, (_, other) in present.items() if other is caller]:
            logger.warning("process %d (%s) came and went", process, present.pop(process)[0])
        return ""
    if not heard.endswith(b"\n"):
        return ""
    try:
        message = json.loads(bytes(heard))
        greeting, process, count = message["greeting"], message["process"], message["of"]
    except (ValueError, KeyError, TypeError):
        greeting = process = count = None
    if greeting != _GREETING or not isinstance(process, int):
        logger.warning("a stranger called at %s", cluster.coordinator)
        ready.unregister(caller)
        caller.close()
        return ""
    who = message["name"]
    if count != cluster.processes:
        return f"{who} counts {count} processes, process 0 counts {cluster.processes}"
    if process in present or not 0 < process < cluster.processes:
        other = present[process][0] if process in present else "process 0"
        return f"{who} and {other} both say they are process {process}"
    present[process] = (who, caller)
    return ""


def _answer(
    cluster: Cluster, timeout: float, name: str, present: dict, trouble: str
) -> dict[str, Any]:
    """What process 0 tells everyone."""
    if trouble:
        advice = "give every process a number of its own, and all the same --num_processes"
        return {"error": f"{trouble}: {advice}", "late": False}
    absent = [number for number in range(1, cluster.processes) if number not in present]
    names = {0: name} | {number: who for number, (who, _) in present.items()}
    if not absent:
        return {"names": [names[number] for number in range(cluster.processes)]}
    here = ", ".join(f"{number} ({names[number]})" for number in sorted(names))
    return {
        "error": f"process {', '.join(map(str, absent))} of {cluster.processes} did not come to "
        f"{cluster.coordinator} within {timeout:g} s; here are {here}. Look at the log of the "
        "hosts that are missing, start them all at about the same time, or raise "
        "--multihost_timeout",
        "late": True,
    }


def _dismiss(caller: Any, answer: dict[str, Any]) -> None:
    """Process 0: answers one caller and lets it hang up first, so that the port is free again."""
    try:
        caller.settimeout(2.0)
        caller.sendall(_line(answer))
        while caller.recv(4096):
            pass
    except OSError:
        pass  # it is gone; JAX's service will wait for it, and say so
    finally:
        caller.close()


def _listener(cluster: Cluster, deadline: float) -> socket.socket:
    """Process 0: opens its port, on every address of the host, waiting for it to be free."""
    port = int(cluster.coordinator.rpartition(":")[2])
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    while True:
        try:
            return socket.create_server(
                ("", port), family=family, dualstack_ipv6=both, backlog=cluster.processes
            )
        except OSError as error:
            if time.monotonic() > deadline:
                raise OSError(
                    error.errno,
                    f"process 0 cannot listen at port {port}: {error.strerror}. Another run may "
                    "have it: end that one, or choose another port with --coordinator",
                ) from error
            time.sleep(0.2)


def _report(cluster: Cluster, timeout: float, name: str) -> dict[str, Any]:
    """Every other process: tells process 0 that it is there, and waits for its answer."""
    host, _, port = cluster.coordinator.rpartition(":")
    deadline, reason = time.monotonic() + timeout, "no answer"
    greeting = {"greeting": _GREETING, "process": cluster.process, "name": name}
    while time.monotonic() < deadline:
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=5) as caller:
                caller.settimeout(timeout + _MARGIN)
                caller.sendall(_line(greeting | {"of": cluster.processes}))
                with caller.makefile("rb") as replies:
                    return json.loads(replies.readline(_LONGEST))
        except (OSError, ValueError) as error:  # not there yet, or it went away half-way
            reason = str(error) or type(error).__name__
            time.sleep(0.2)
    return {
        "error": f"process 0 of {cluster.processes} did not answer at {cluster.coordinator} within "
        f"{timeout:g} s ({reason}); here is {cluster.process} ({name}). Look at the log of process "
        "0, and whether the others reach its port",
        "late": True,
    }


def _line(message: dict[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\n"
