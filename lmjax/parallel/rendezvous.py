"""Where the processes of a run meet before JAX connects them: do all come, and are all about to do the same?

In: the address of process 0, and what each process is about to run, as facts. Out: nothing, where all agree; or the
UserError of whichever process has made a mistake, in all of them. Process 0 listens at the address that JAX's
coordinator will take afterwards, and every other process sends it one line of JSON and waits for one.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import time
from typing import Any

from lmjax.errors import PeerLostError, UserError, require, shortened
from lmjax.files import MalformedJsonError, parse_json

Facts = dict[str, dict[str, str]]  # by part, such as "the recipe": fields and their values
LINGER_SECONDS = 30  # for which process 0 stays after a mistake, to tell those who come later
MOST_FIELDS = 8  # of a part that a message names


def meet(address: str, processes: int, index: int, facts: Facts | str, seconds: float) -> None:
    """Returns when every process has come with the same facts.

    `facts` of a process that has made a mistake are its message, which all receive. Raises UserError for mistakes and
    for facts that differ, and PeerLostError, naming who is missing, when `seconds` have passed.
    """
    host, _, port = address.rpartition(":")
    fix = "set it to that"
    require(port.isdecimal() and bool(host), "JAX_COORDINATOR_ADDRESS", address, "host:port of process 0", fix)
    deadline = time.monotonic() + seconds
    if index == 0:
        _gather(int(port), processes, facts, deadline, seconds)
    else:
        _report(host, int(port), processes, index, facts, deadline, seconds)


def different(index: int, first: Facts, own: Facts) -> str:
    """What process `index` is about to do otherwise than process 0, in words; empty where they agree."""
    parts = []
    for part in [*first, *(part for part in own if part not in first)]:
        one, other = first.get(part, {}), own.get(part, {})
        names = [*one, *(name for name in other if name not in one)]
        fields = [
            f"{name}: {shortened(one.get(name, 'absent'), 80)} there, {shortened(other.get(name, 'absent'), 80)} here"
            for name in names
            if one.get(name) != other.get(name)
        ]
        if fields:
            more = f"; and {len(fields) - MOST_FIELDS} more" if len(fields) > MOST_FIELDS else ""
            parts.append(f"{part} ({'; '.join(fields[:MOST_FIELDS])}{more})")
    if not parts:
        return ""
    return (
        f"process {index} differs from process 0 in {', and in '.join(parts)}; expected the same in every process; "
        "start the same command with the same files and packages on each host"
    )


def _gather(port: int, processes: int, facts: Facts | str, deadline: float, seconds: float) -> None:
    """Process 0: waits for all, compares, and answers. Of a mistake it tells at once, also those who come later."""
    came: dict[int, socket.socket] = {}
    verdict = f"process 0: {facts}" if isinstance(facts, str) else ""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(_listening(port))
        unread: list[socket.socket] = []
        while len(came) < processes - 1 and time.monotonic() < deadline:
            open_ones = [] if verdict else came.values()
            for connection in select.select([listener, *unread, *open_ones], [], [], 0.5)[0]:
                if connection is listener:
                    unread.append(stack.enter_context(listener.accept()[0]))
                    unread[-1].settimeout(5)
                elif connection in unread:
                    unread.remove(connection)
                    line = _read_line(connection)
                    number = line.get("process")
                    if type(number) is not int or not 0 < number < processes:
                        continue
                    came[number] = connection
                    if verdict:
                        _send(connection, {"verdict": verdict})
                    elif verdict := _judged(number, facts, line):
                        deadline = min(deadline, time.monotonic() + LINGER_SECONDS)
                        for other in came.values():
                            _send(other, {"verdict": verdict})
                else:  # it has gone away, and may come again
                    came = {number: other for number, other in came.items() if other is not connection}
        listener.close()  # JAX's coordinator listens there next
        missing = [str(number) for number in range(1, processes) if number not in came]
        lost = _missing(missing, processes, seconds) if missing and not verdict else ""
        for connection in [] if verdict else came.values():
            _send(connection, {"verdict": "", "lost": lost})
    _raise(verdict, lost)


def _judged(number: int, facts: Facts | str, line: dict[str, Any]) -> str:
    if line.get("mistake"):
        return f"process {number}: {line['mistake']}"
    own = line.get("facts")
    return different(number, facts, own) if isinstance(own, dict) and not isinstance(facts, str) else ""


def _missing(missing: list[str], processes: int, seconds: float) -> str:
    who = f"process {missing[0]}" if len(missing) == 1 else f"processes {', '.join(missing[:20])}"
    return (
        f"{who} of {processes} did not come within {seconds:.0f} s; see what became of it on its host, and start all "
        "of them again"
    )


def _report(
    host: str, port: int, processes: int, index: int, facts: Facts | str, deadline: float, seconds: float
) -> None:
    """Another process: tells process 0 what it is about to do, and waits for the answer."""
    own = {"process": index} | ({"mistake": facts} if isinstance(facts, str) else {"facts": facts})
    error: OSError | str = "it hung up"
    while time.monotonic() < deadline:
        try:
            with socket.create_connection((host, port), timeout=5) as connection:
                _send(connection, own)
                connection.settimeout(seconds + 10)  # it may have started later, and waits for others as long
                answer = _read_line(connection)
            if "verdict" in answer:
                _raise(str(answer["verdict"]), str(answer.get("lost", "")))
                return
        except OSError as unreachable:
            error = unreachable
        time.sleep(0.5)
    raise PeerLostError(
        f"process 0 of this run does not answer at JAX_COORDINATOR_ADDRESS = {host}:{port} after {seconds:.0f} s "
        f"({error}); see whether it runs, and start all of the {processes} again"
    )


def _raise(verdict: str, lost: str) -> None:
    if verdict:
        raise UserError(verdict)
    if lost:
        raise PeerLostError(lost)


def _listening(port: int) -> socket.socket:
    try:
        return socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
    except OSError:  # a machine without IPv6
        try:
            return socket.create_server(("", port))
        except OSError as error:
            raise UserError(
                f"JAX_COORDINATOR_ADDRESS: process 0 cannot listen at port {port} ({error.strerror}); expected a free "
                "port; is another run using it? choose another"
            ) from error


def _send(connection: socket.socket, line: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):
        connection.sendall(json.dumps(line).encode() + b"\n")


def _read_line(connection: socket.socket) -> dict[str, Any]:
    """The one line of JSON that the other end sends; empty where it sends another thing or hangs up."""
    data = b""
    try:
        while not data.endswith(b"\n"):
            piece = connection.recv(1 << 16)
            if not piece:
                return {}
            data += piece
        line = parse_json(data)
    except (OSError, MalformedJsonError):
        return {}
    return line if isinstance(line, dict) else {}
