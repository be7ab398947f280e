"""Starts a script in several processes of this machine that form one cluster.

python -m tf_moe.distribute.launch --processes 2 --devices-per-process 2 SCRIPT [ARGUMENTS...]
"""

import argparse
import contextlib
import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import BinaryIO

# `tf_moe.distribute.cluster` reads it, and has it once more: run by its path this file needs no TensorFlow, which an
# import from there would bring; and of an import from here `python -m` would warn.
DEVICES_VARIABLE = "TF_MOE_DEVICES_PER_PROCESS"

_POLL_SECONDS = 0.05


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: Those of the command line, without the program's name; by default this program's own.

    Returns:
        0 if every process did, otherwise the code of the first one that did not: 128 + n if signal n ended it.

    Example:
        >>> from tf_moe.distribute import launch
        >>> written = pathlib.Path("train.py").write_text("import sys; print(sys.argv)")
        >>> launch.main(["--processes", "2", "train.py", "--epochs", "3"])
        0
    """
    options = _parser().parse_args(arguments)
    target = ["-m", options.target] if options.module else [options.target]
    with reserved_ports(options.processes) as ports:
        addresses = [f"localhost:{port}" for port in ports]
        group = _Processes(options.grace)
        with group.forwarding_signals():
            try:
                for index in range(options.processes):
                    environment = process_environment(index, addresses, options.devices_per_process)
                    group.start([sys.executable, *target, *options.arguments], environment)
                return group.wait()
            except BaseException:  # one cannot be started, and the others would wait for it
                group.kill()
                raise


@contextlib.contextmanager
def reserved_ports(number: int) -> Iterator[list[int]]:
    """Ports that no other program is given as long as the context lasts; the processes' TensorFlow can listen on them.

    The sockets stay bound. TF_GRPC_REUSE_PORT=1, which `process_environment` sets, lets TensorFlow share their ports.

    Args:
        number: How many.

    Yields:
        The ports.

    Example:
        >>> from tf_moe.distribute import launch
        >>> with launch.reserved_ports(2) as ports:
        ...     environment = launch.process_environment(0, [f"localhost:{port}" for port in ports])
    """
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            one.bind(("", 0))
        yield [one.getsockname()[1] for one in sockets]


def process_environment(index: int, addresses: Sequence[str], devices_per_process: int | None = None) -> dict[str, str]:
    """The environment variables of one process: those of this one, and what tells it of the cluster.

    Args:
        index: The number of the process, from 0.
        addresses: "host:port" of every process.
        devices_per_process: The number of logical devices to make in each; None leaves that to the script.

    Returns:
        A complete environment.

    Raises:
        ValueError: If no address has this number.

    Example:
        >>> from tf_moe.distribute import launch
        >>> environment = launch.process_environment(1, ["localhost:2222", "localhost:2223"])
        >>> environment["TF_CONFIG"]
        '{"cluster": {"worker": ["localhost:2222", "localhost:2223"]}, "task": {"type": "worker", "index": 1}}'
    """
    if not 0 <= index < len(addresses):
        raise ValueError(
            f"index must be that of one of the addresses, counted from 0. Received: index={index!r}, {addresses!r}."
        )
    task = {"type": "worker", "index": index}
    environment = {
        **os.environ,
        "TF_CONFIG": json.dumps({"cluster": {"worker": list(addresses)}, "task": task}),
        "TF_GRPC_REUSE_PORT": "1",
        "PYTHONUNBUFFERED": "1",
    }
    if devices_per_process is not None:
        environment[DEVICES_VARIABLE] = str(devices_per_process)
    return environment


class _Processes:
    """Processes that are numbered in their order, print with their number, and end together."""

    def __init__(self, grace: float):
        self._grace = grace
        self._processes: list[subprocess.Popen] = []
        self._copiers: list[threading.Thread] = []
        self._printing = threading.Lock()
        self._signals: list[int] = []
        self._interrupted = False
        self._result = 0
        # When to do what to the processes that are still running, the next first.
        self._plan: list[tuple[float, signal.Signals]] = []

    def start(self, command: list[str], environment: dict[str, str]) -> None:
        index = len(self._processes)
        # A session of its own, so that a terminal's Ctrl-C reaches it once, and so that what it starts ends with it.
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self._processes.append(process)
        for source, target in ((process.stdout, sys.stdout), (process.stderr, sys.stderr)):
            copier = threading.Thread(target=self._copy, args=(index, source, target.buffer), daemon=True)
            copier.start()
            self._copiers.append(copier)

    def kill(self) -> None:
        """Ends all at once."""
        _send(signal.SIGKILL, self._processes)
        for process in self._processes:
            process.wait()

    def wait(self) -> int:
        """Waits for all, and ends the others when one fails."""
        running = dict(enumerate(self._processes))
        while running:
            for index, process in list(running.items()):
                if process.poll() is not None:
                    del running[index]
                    self._ended(index, process.returncode, bool(running))
            while self._signals:
                self._forward(self._signals.pop(0), running.values())
            while self._plan and time.monotonic() >= self._plan[0][0]:
                _send(self._plan.pop(0)[1], running.values())
            time.sleep(_POLL_SECONDS)
        for copier in self._copiers:
            copier.join(timeout=self._grace)  # what a process left running may keep its output open
        return self._result

    @contextlib.contextmanager
    def forwarding_signals(self) -> Iterator[None]:
        """Makes `wait` send SIGINT and SIGTERM on to all; and SIGHUP, which comes when a terminal is closed."""
        previous = {}
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
                previous[number] = signal.signal(number, lambda number, _: self._signals.append(number))
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _forward(self, number: int, running: Iterable[subprocess.Popen]) -> None:
        _send(number, running)
        if self._interrupted:  # the second time, somebody is in a hurry
            self._plan = [(0.0, signal.SIGKILL)]
        elif not self._plan:
            self._end_after(self._grace)
        self._interrupted = True

    def _ended(self, index: int, code: int, others: bool) -> None:
        if code == 0 or self._result:
            return
        self._result = code if code > 0 else 128 - code
        how = f"with code {code}" if code > 0 else f"by {_signal_name(-code)}"
        line = f"launch: process {index} ended {how}{', ending the others' * others}\n"
        self._write(sys.stderr.buffer, line.encode())
        if not self._plan:
            self._end_after(0.0)

    def _end_after(self, seconds: float) -> None:
        start = time.monotonic() + seconds
        self._plan = [(start, signal.SIGTERM), (start + self._grace, signal.SIGKILL)]

    def _copy(self, index: int, source: BinaryIO, target: BinaryIO) -> None:
        prefix = f"[{index}] ".encode()
        with source:
            for line in source:
                self._write(target, prefix + line.removesuffix(b"\n") + b"\n")

    def _write(self, target: BinaryIO, line: bytes) -> None:
        # A reader that has gone away must not stop the processes, which wait when nobody takes their output.
        with self._printing, contextlib.suppress(BrokenPipeError):
            target.write(line)
            target.flush()


def _send(number: int, running: Iterable[subprocess.Popen]) -> None:
    """Sends a signal to processes that have not been waited for (the numbers of others may be in use again)."""
    for process in running:
        # macOS says PermissionError for one that has ended.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tf_moe.distribute.launch",
        usage="%(prog)s [--processes N] [--devices-per-process N] [--grace SECONDS] (SCRIPT | -m MODULE) [ARGUMENTS]",
        description="Starts SCRIPT in several processes on this machine, with TF_CONFIG set so that they form one "
        "cluster. Each line of their output begins with the number of the process. When one fails, the others end.",
    )
    parser.add_argument("--processes", type=_positive, default=2, help="how many (default: 2)")
    parser.add_argument(
        "--devices-per-process",
        type=_positive,
        help=f"logical CPU devices of each ({DEVICES_VARIABLE}); by default the script decides",
    )
    parser.add_argument(
        "--grace",
        type=_seconds,
        default=10.0,
        help="seconds that processes have to end by themselves after a signal, and after SIGTERM until SIGKILL "
        "(default: 10)",
    )
    parser.add_argument("-m", dest="module", action="store_true", help="run a module, as python -m does")
    parser.add_argument("target", metavar="SCRIPT", help="the script, or the module after -m")
    parser.add_argument("arguments", metavar="ARGUMENTS", nargs=argparse.REMAINDER, help="passed on")
    return parser


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal, most of which have no name
        return f"signal {number}"


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a positive integer. Received: {text!r}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number of seconds, 0 or more. Received: {text!r}")
    return seconds


if __name__ == "__main__":
    sys.exit(main())
