"""Real processes that connect, compute together and lose one another."""

import os
import signal
import subprocess
import sys
import time

import tensorflow as tf
from absl.testing import parameterized

from tests.base import TestCase
from tests.processes import environment, write_script
from tf_moe.distribute import launch
from tf_moe.distribute.cluster import Cluster
from tf_moe.distribute.connection import barrier, broadcast_int, join

# Long enough for processes that start on a busy machine.
TIMEOUT = 300

_START = """
import os, signal, sys, time
import tensorflow as tf
from tensorflow.experimental import dtensor
from tf_moe.distribute.cluster import Cluster, devices_per_process, find_cluster
from tf_moe.distribute import connection
from tf_moe.distribute.connection import barrier, broadcast_int, join

cluster = find_cluster()
index = cluster.process_index
"""

_COMPUTE = """
mesh = dtensor.create_distributed_mesh([("x", 4)], device_type="CPU")
rows, columns = (dtensor.Layout(axes, mesh) for axes in (["x", "unsharded"], ["unsharded", "x"]))

@tf.function
def step(matrix):
    return dtensor.relayout(dtensor.relayout(matrix + 1, columns) * 2, rows)

x = dtensor.copy_to_mesh(tf.reshape(tf.range(32.0), [8, 4]), dtensor.Layout.replicated(mesh, 2))
x = dtensor.relayout(x, rows)
"""

_TOGETHER = (
    _START
    + """
join(cluster, devices_per_process=devices_per_process(), heartbeat_timeout=8)
"""
    + _COMPUTE
    + """
y = dtensor.relayout(step(x), dtensor.Layout.replicated(mesh, 2))
assert (y.numpy() == 2 * (tf.reshape(tf.range(32.0), [8, 4]).numpy() + 1)).all()

# What `join` leaves and refuses.
assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
join(cluster, devices_per_process=2)
def assert_raises(what, function, *arguments, **keywords):
    try:
        function(*arguments, **keywords)
    except RuntimeError as error:
        assert what in str(error), error
    else:
        raise AssertionError(what)
assert_raises("one cluster only", join, Cluster(0, ("a:1", "b:1", "c:1")))
assert_raises("with 2 CPU device(s)", join, cluster, devices_per_process=3)

for value in (5, 0, -3, 2**80):
    assert broadcast_int(value if index == 0 else 77) == value

marks = sys.argv[1]
def mark(name):
    open(os.path.join(marks, name), "w").close()
def marked(name):
    return os.path.exists(os.path.join(marks, name))

if index == 1:
    time.sleep(1)
    mark("late")
barrier()
assert marked("late")

# One that does not come. (The other comes too late.)
if index == 1:
    while not marked("alone"):
        time.sleep(0.1)
assert_raises("did not come within 1 s", barrier, timeout=1)
mark("alone")
assert broadcast_int(index + 1) == 1

# One ends when the other would long have taken it for lost.
if index == 1:
    time.sleep(12)
print("fine")
"""
)

_LOSING = (
    _START
    + """
how, victim, heartbeat = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
join(cluster, devices_per_process=devices_per_process(), heartbeat_timeout=heartbeat)
"""
    + _COMPUTE
    + """
barrier()
for number in range(10**9):
    x = step(x) / 3
    if number == 20:
        print("computing")
        if index == victim and how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if index == victim and how == "raise":
            raise ValueError("the data are wrong")
        if index == victim and how == "finish":
            connection._LEAVE_SECONDS = 2.0
            break
"""
)

_ALONE = (
    _START
    + """
join(cluster, start_timeout=float(sys.argv[1]))
"""
)


class ConnectionTest(TestCase):
    def start(self, script, variables, *arguments):
        process = subprocess.Popen(
            [sys.executable, script, *map(str, arguments)],
            env=environment(**variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.addCleanup(self.end, process)
        return process

    def end(self, process):
        process.kill()
        process.communicate()

    def test_together(self):
        script = write_script(self, _TOGETHER)
        options = ("--processes", 2, "--devices-per-process", 2)
        process = self.start(launch.__file__, {}, *options, script, script.parent)
        stdout, stderr = process.communicate(timeout=TIMEOUT)
        self.assertEqual(process.returncode, 0, stderr)
        self.assertEqual(sorted(stdout.splitlines()), ["[0] fine", "[1] fine"])
        # TensorFlow's word where one is taken for lost.
        self.assertNotIn("StartAbort", stderr)
        self.assertNotIn("Traceback", stderr)

    def lose(self, how, victim, heartbeat):
        """What the other process says when one ends early, and how long it lived on."""
        script = write_script(self, _LOSING)
        with launch.reserved_ports(2) as ports:
            addresses = [f"localhost:{port}" for port in ports]
            processes = [
                self.start(script, launch.process_environment(index, addresses, 2), how, victim, heartbeat)
                for index in range(2)
            ]
            _, stderr = processes[victim].communicate(timeout=TIMEOUT)
            expected = {"kill": -signal.SIGKILL, "raise": 1, "finish": 0}[how]
            self.assertEqual(processes[victim].returncode, expected, stderr)
            start = time.monotonic()
            stdout, stderr = processes[1 - victim].communicate(timeout=TIMEOUT)
            self.assertEqual(stdout, "computing\n")
            self.assertEqual(processes[1 - victim].returncode, 1, stderr)
            return stderr, time.monotonic() - start

    @parameterized.parameters(0, 1)
    def test_a_killed_process_ends_the_other(self, victim):
        stderr, seconds = self.lose("kill", victim, heartbeat=8)
        self.assertLess(seconds, 60)
        self.assertRegex(stderr, rf"Process {1 - victim} \(localhost:\d+\) of 2: another process failed or cannot be")

    @parameterized.parameters(0, 1)
    def test_an_exception_ends_the_other_at_once_and_is_told(self, victim):
        stderr, seconds = self.lose("raise", victim, heartbeat=1000)
        self.assertLess(seconds, 60)
        self.assertRegex(stderr, rf"Process {victim} \(localhost:\d+\) of 2 ended by ValueError: the data are wrong")

    def test_a_script_that_ends_before_the_other(self):
        stderr, seconds = self.lose("finish", 1, heartbeat=1000)
        self.assertLess(seconds, 60)
        self.assertRegex(stderr, r"Process 1 \(localhost:\d+\) of 2 came to the end of its script 2 s ago")

    def test_others_that_do_not_start(self):
        script = write_script(self, _ALONE)
        with launch.reserved_ports(6) as ports:
            addresses = [f"localhost:{port}" for port in ports]
            first = self.start(script, launch.process_environment(0, addresses[:2]), 3)
            second = self.start(script, launch.process_environment(1, addresses[2:4]), 3)
            taken = self.start(
                script, {**launch.process_environment(0, addresses[4:]), "TF_GRPC_REUSE_PORT": "0"}, 1000
            )
            for process in (first, second):
                _, stderr = process.communicate(timeout=TIMEOUT)
                self.assertEqual(process.returncode, 1, stderr)
                self.assertIn("waited 3 s for all of", stderr)
            _, stderr = taken.communicate(timeout=TIMEOUT)
            self.assertEqual(taken.returncode, 1, stderr)
            self.assertIn("its own port is free", stderr)


class OneProcessTest(TestCase):
    def test_nothing_to_wait_for(self):
        join(None)
        barrier()
        self.assertEqual(broadcast_int(-7), -7)

    def test_wrong_arguments(self):
        with self.assertRaisesRegex(ValueError, "'ABACUS'"):
            join(None, device_type="ABACUS")
        with self.assertRaisesRegex(ValueError, "CUDA_VISIBLE_DEVICES"):
            join(None, device_type="GPU", devices_per_process=2)
        with self.assertRaisesRegex(ValueError, "positive. Received: 0"):
            join(None, devices_per_process=0)

    def test_too_late(self):
        devices = len(tf.config.list_logical_devices("CPU"))  # which starts TensorFlow
        join(None, devices_per_process=devices)
        with self.assertRaisesRegex(RuntimeError, "only before TensorFlow is used"):
            join(None, devices_per_process=devices + 1)
        before = dict(os.environ)
        with self.assertRaisesRegex(RuntimeError, "only before TensorFlow is used"):
            join(Cluster(0, ("localhost:1", "localhost:2")))
        self.assertEqual(dict(os.environ), before)
