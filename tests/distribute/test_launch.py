"""The launcher as a user runs it, with scripts that do not need TensorFlow."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from unittest import mock

from tests.base import TestCase
from tests.processes import run_python, write_script
from tf_moe.distribute import cluster, launch

# Every script has all of it, so that none waits for an import.
_HEAD = """
import json, os, signal, subprocess, sys, time
index = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
"""


class LaunchTest(TestCase):
    def setUp(self):
        super().setUp()
        # Where the tests run in the background or under nohup, some are ignored, and so would processes started here.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self.addCleanup(signal.signal, number, signal.signal(number, signal.default_int_handler))

    def script(self, body, name="script.py"):
        return write_script(self, _HEAD + body, name)

    def start(self, *arguments):
        # By its path: the launcher itself needs nothing of the package, which takes seconds to import.
        command = [sys.executable, launch.__file__, *map(str, arguments)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        watchdog = threading.Timer(120, process.kill)  # a line that never comes ends the test, and not never
        watchdog.start()
        self.addCleanup(watchdog.cancel)
        self.addCleanup(self.end, process)
        return process

    def end(self, process):
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()

    def run_to_end(self, *arguments):
        process = self.start(*arguments)
        stdout, stderr = process.communicate(timeout=120)
        return process.returncode, stdout, stderr

    def wait_for_lines(self, process, number):
        return sorted(process.stdout.readline() for _ in range(number))

    def test_processes_of_one_cluster(self):
        script = self.script("""
print(json.dumps([os.environ["TF_CONFIG"], os.environ.get("TF_MOE_DEVICES_PER_PROCESS"), sys.argv[1:]]))
""")
        code, stdout, stderr = self.run_to_end(
            "--processes", 3, "--devices-per-process", 2, script, "--epochs", "3", "-m", "--processes"
        )
        self.assertEqual((code, stderr), (0, ""))
        clusters = []
        for index, line in enumerate(sorted(stdout.splitlines())):
            prefix, _, line = line.partition(" ")
            self.assertEqual(prefix, f"[{index}]")
            config, devices, arguments = json.loads(line)
            self.assertEqual(devices, "2")
            self.assertEqual(arguments, ["--epochs", "3", "-m", "--processes"])
            config = json.loads(config)
            self.assertEqual(config["task"], {"type": "worker", "index": index})
            clusters.append(config["cluster"])
        self.assertLen(clusters, 3)
        self.assertEqual(clusters, [clusters[0]] * 3)
        self.assertLen(set(clusters[0]["worker"]), 3)

    def test_devices_are_left_to_the_script_by_default(self):
        script = self.script('print("TF_MOE_DEVICES_PER_PROCESS" in os.environ)')
        self.assertEqual(self.run_to_end("--processes", 1, script), (0, "[0] False\n", ""))

    def test_the_variable_is_the_one_that_is_read(self):
        environment = launch.process_environment(0, ["localhost:1"], 3)
        self.assertEqual(environment[cluster.DEVICES_VARIABLE], "3")

    def test_reserved_ports_are_given_to_nobody_else_but_can_be_shared(self):
        with launch.reserved_ports(2) as ports:
            for port in ports:
                with socket.socket() as other, self.assertRaises(OSError):
                    other.bind(("", port))
                with socket.socket() as server, socket.socket() as client:
                    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                    server.bind(("", port))
                    server.listen()
                    client.connect(("localhost", port))
        for port in ports:
            with socket.socket() as other:
                other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                other.bind(("", port))

    def test_module_and_package_entry(self):
        script = self.script('print("module", __name__, sys.argv[1:])', "some_module.py")
        with contextlib.chdir(script.parent):  # where the module is found
            run = run_python("-m", "tf_moe.distribute.launch", "--processes", 1, "-m", "some_module", "-x")
        self.assertEqual(run.stdout, "[0] module __main__ ['-x']\n")

    def test_lines_come_whole_at_once_and_to_their_own_stream(self):
        process = self.start(
            *("--processes", 2),
            self.script("""
print("out", index)
sys.stderr.write("error " + str(index) + chr(10))
time.sleep(1)
for line in range(200):
    print(str(line) * 300)
sys.stdout.write("without an end")
"""),
        )
        stdout, stderr = process.communicate(timeout=120)
        lines = stdout.splitlines()
        for index in range(2):
            mine = [line for line in lines if line.startswith(f"[{index}] ")]
            expected = [f"out {index}", *(str(line) * 300 for line in range(200)), "without an end"]
            self.assertEqual(mine, [f"[{index}] {line}" for line in expected])
        self.assertLen(lines, 2 * 202)
        self.assertEqual(sorted(stderr.splitlines()), ["[0] error 0", "[1] error 1"])

    def test_output_is_passed_on_while_the_script_runs(self):
        process = self.start("--processes", 2, self.script('print("here")\ntime.sleep(1000)'))
        self.assertEqual(self.wait_for_lines(process, 2), ["[0] here\n", "[1] here\n"])
        self.assertIsNone(process.poll())
        process.terminate()
        self.assertEqual(process.wait(60), 128 + signal.SIGTERM)

    def test_the_first_failure_ends_the_others_and_is_the_result(self):
        code, _, stderr = self.run_to_end(
            *("--processes", 3),
            self.script("""
if index == 1:
    time.sleep(1)
    sys.exit(7)
time.sleep(1000)
"""),
        )
        self.assertEqual(code, 7)
        self.assertIn("launch: process 1 ended with code 7, ending the others\n", stderr)
        self.assertNotIn("Traceback", stderr)

    def test_a_normal_end_does_not_end_the_others(self):
        script = self.script('time.sleep(index)\nprint("done")')
        code, stdout, stderr = self.run_to_end("--processes", 2, script)
        self.assertEqual((code, stdout, stderr), (0, "[0] done\n[1] done\n", ""))

    def test_a_process_that_was_killed(self):
        code, _, stderr = self.run_to_end(
            *("--processes", 2), self.script("os.kill(os.getpid(), signal.SIGKILL) if index == 0 else time.sleep(1000)")
        )
        self.assertEqual(code, 128 + signal.SIGKILL)
        self.assertIn("launch: process 0 ended by SIGKILL, ending the others\n", stderr)

    def test_a_signal_without_a_name(self):
        script = self.script("os.kill(os.getpid(), 40) if index == 0 else time.sleep(1000)")
        code, _, stderr = self.run_to_end("--processes", 2, script)
        self.assertEqual(code, 128 + 40)
        self.assertIn("launch: process 0 ended by signal 40, ending the others\n", stderr)

    def test_one_that_does_not_end_is_killed_after_the_grace(self):
        start = time.monotonic()
        code, stdout, _ = self.run_to_end(
            *("--processes", 2, "--grace", 2),
            self.script("""
if index == 0:
    signal.signal(signal.SIGTERM, lambda *_: print("I stay"))
    open(sys.argv[1], "w").close()
    while True:
        time.sleep(0.1)
while not os.path.exists(sys.argv[1]):
    time.sleep(0.1)
sys.exit(5)
"""),
            Path(self.get_temp_dir()) / "it_stays",
        )
        self.assertEqual((code, stdout), (5, "[0] I stay\n"))
        self.assertGreater(time.monotonic() - start, 2)

    def test_signals_are_forwarded_and_leave_time_to_end_well(self):
        for number in (signal.SIGINT, signal.SIGTERM):
            with self.subTest(number.name):
                process = self.start(
                    *("--processes", 2),
                    self.script("""
def end(number, _):
    time.sleep(1)
    print("ending well after", number)
    sys.exit(0)
signal.signal(signal.SIGINT, end)
signal.signal(signal.SIGTERM, end)
print("ready")
time.sleep(1000)
"""),
                )
                self.wait_for_lines(process, 2)
                process.send_signal(number)
                stdout, stderr = process.communicate(timeout=60)
                self.assertEqual(
                    sorted(stdout.splitlines()), [f"[{i}] ending well after {number.value}" for i in range(2)]
                )
                self.assertEqual((process.returncode, stderr), (0, ""))

    def test_interrupt_without_a_handler(self):
        process = self.start("--processes", 2, self.script('print("ready")\ntime.sleep(1000)'))
        self.wait_for_lines(process, 2)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 128 + signal.SIGINT)
        self.assertIn("KeyboardInterrupt", stderr)

    def test_a_second_signal_kills(self):
        process = self.start(
            *("--processes", 1, "--grace", 1000),
            self.script("""
signal.signal(signal.SIGINT, lambda *_: print("once"))
print("ready")
while True:
    time.sleep(0.1)
"""),
        )
        self.wait_for_lines(process, 1)
        process.send_signal(signal.SIGINT)
        self.assertEqual(self.wait_for_lines(process, 1), ["[0] once\n"])
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
        self.assertEqual(process.returncode, 128 + signal.SIGKILL)

    def test_none_is_left_when_one_cannot_be_started(self):
        started, start = [], subprocess.Popen

        def fail_later(*arguments, **options):
            if started:
                raise OSError("too many processes")
            started.append(start(*arguments, **options))
            self.addCleanup(started[0].kill)
            return started[0]

        script = self.script("time.sleep(1000)")
        with mock.patch.object(subprocess, "Popen", fail_later), self.assertRaisesRegex(OSError, "too many processes"):
            launch.main(["--processes", "2", str(script)])
        self.assertEqual(started[0].poll(), -signal.SIGKILL)

    def test_what_a_script_started_ends_with_it(self):
        process = self.start(
            *("--processes", 1),
            self.script("""
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
print(child.pid)
child.wait()
"""),
        )
        pid = int(self.wait_for_lines(process, 1)[0].split()[1])
        process.terminate()
        process.communicate(timeout=60)  # which would wait for the child's output to close
        self.assertEqual(process.returncode, 128 + signal.SIGTERM)
        with self.assertRaises(ProcessLookupError):
            for _ in range(100):
                os.kill(pid, 0)
                time.sleep(0.1)

    def test_a_reader_that_goes_away(self):
        process = self.start(
            *("--processes", 1),
            self.script("""
for _ in range(20000):
    print("many words " * 10)
open(sys.argv[1], "w").close()
"""),
            Path(self.get_temp_dir()) / "reached_the_end",
        )
        self.wait_for_lines(process, 1)
        process.stdout.close()
        self.assertEqual(process.wait(60), 0)
        self.assertTrue((Path(self.get_temp_dir()) / "reached_the_end").exists())
        self.assertEqual(process.stderr.read(), "")

    def test_wrong_arguments(self):
        for arguments, what in (
            (["--processes", "0", "x.py"], "'0'"),
            (["--devices-per-process", "-1", "x.py"], "'-1'"),
            ([], "SCRIPT"),
        ):
            code, _, stderr = self.run_to_end(*arguments)
            self.assertEqual(code, 2)
            self.assertIn(what, stderr)

    def test_a_script_that_is_not_there(self):
        code, _, stderr = self.run_to_end("--processes", 1, "no/such/script.py")
        self.assertEqual(code, 2)
        self.assertIn("no/such/script.py", stderr)
