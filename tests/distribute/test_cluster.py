import json
import os
from unittest import mock

import tensorflow as tf
from absl.testing import parameterized

from tests.base import TestCase
from tf_moe.distribute.cluster import DEVICES_VARIABLE, Cluster, devices_per_process, find_cluster

SimpleClusterResolver = tf.distribute.cluster_resolver.SimpleClusterResolver


def simple_resolver(jobs, task_type="", task_id=None):
    return SimpleClusterResolver(tf.train.ClusterSpec(jobs), task_type=task_type, task_id=task_id)


class ClusterTest(TestCase):
    def test_addresses_in_a_list(self):
        """The same cluster as in a tuple, which a process that has joined it compares."""
        cluster = Cluster(0, ["a:1", "b:1"])
        self.assertEqual(cluster, Cluster(0, ("a:1", "b:1")))
        self.assertEqual(hash(cluster), hash(Cluster(0, ("a:1", "b:1"))))


class FindClusterTest(TestCase):
    def environment(self, **variables):
        variables = {name: value if isinstance(value, str) else json.dumps(value) for name, value in variables.items()}
        for name in ("TF_CONFIG", DEVICES_VARIABLE):
            os.environ.pop(name, None)
        os.environ.update(variables)

    def setUp(self):
        super().setUp()
        self.enter_context(mock.patch.dict(os.environ))
        self.environment()

    def test_none(self):
        self.assertIsNone(find_cluster())
        for config in (
            "",
            {},
            {"cluster": {}},
            {"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 0}},
            {"cluster": {"chief": ["a:1"]}},
        ):
            self.environment(TF_CONFIG=config)
            self.assertIsNone(find_cluster(), config)

    def test_workers(self):
        for index in range(3):
            self.environment(
                TF_CONFIG={"cluster": {"worker": ["c:1", "a:1", "a:2"]}, "task": {"type": "worker", "index": index}}
            )
            # In their order, not sorted: every process has to have the same.
            self.assertEqual(find_cluster(), Cluster(index, ("c:1", "a:1", "a:2")))
            self.assertEqual(find_cluster().num_processes, 3)

    def test_chief_is_first(self):
        for job, index, process in (("chief", 0, 0), ("worker", 0, 1), ("worker", 1, 2)):
            self.environment(
                TF_CONFIG={
                    "cluster": {"worker": ["a:1", "b:1"], "chief": ["z:1"]},
                    "task": {"type": job, "index": index},
                }
            )
            self.assertEqual(find_cluster(), Cluster(process, ("z:1", "a:1", "b:1")))

    def test_a_resolver_comes_before_tf_config(self):
        self.environment(TF_CONFIG="no JSON")
        resolver = simple_resolver({"worker": ["a:1", "b:1"]}, "worker", 1)
        self.assertEqual(find_cluster(resolver), Cluster(1, ("a:1", "b:1")))
        # As a resolver for Kubernetes, which has to be told its task.
        resolver = simple_resolver({"worker": ["a:1", "b:1"]})
        resolver.task_type, resolver.task_id = "worker", 0
        self.assertEqual(find_cluster(cluster_resolver=resolver), Cluster(0, ("a:1", "b:1")))
        self.assertEqual(find_cluster(resolver), Cluster(0, ("a:1", "b:1")))

    def test_slurm(self):
        os.environ.update(
            SLURM_PROCID="3",
            SLURM_STEP_NUM_TASKS="4",
            SLURM_STEP_NODELIST="node[1-2]",
            SLURM_STEP_TASKS_PER_NODE="2(x2)",
        )
        # On nodes without GPUs TensorFlow's resolver fails unless it is told of as many as there are tasks.
        resolver = tf.distribute.cluster_resolver.SlurmClusterResolver(
            gpus_per_node=2, gpus_per_task=1, auto_set_gpu=False
        )
        self.assertEqual(find_cluster(resolver), Cluster(3, ("node1:8888", "node1:8889", "node2:8888", "node2:8889")))

    @parameterized.named_parameters(
        ("ps", {"worker": ["a:1"], "ps": ["b:1"]}, "worker", 0, "'ps'"),
        ("evaluator", {"worker": ["a:1", "c:1"], "evaluator": ["b:1"]}, "evaluator", 0, "'evaluator'"),
        ("two_chiefs", {"chief": ["a:1", "b:1"]}, "chief", 0, "one 'chief'"),
        ("no_task", {"worker": ["a:1", "b:1"]}, "", None, "which of its tasks"),
        ("no_index", {"worker": ["a:1", "b:1"]}, "worker", None, "which of its tasks"),
        ("index_too_large", {"worker": ["a:1", "b:1"]}, "worker", 2, "index 2"),
        ("negative_index", {"worker": ["a:1", "b:1"]}, "worker", -1, "index -1"),
        ("another_type", {"worker": ["a:1", "b:1"]}, "chief", 0, "type 'chief'"),
        ("no_port", {"worker": ["a:1", "b"]}, "worker", 0, "'b'"),
        ("port_is_no_number", {"worker": ["a:1", "b:http"]}, "worker", 0, "'b:http'"),
        ("missing_address", {"worker": {0: "a:1", 2: "b:1"}}, "worker", 0, "host:port"),
        ("same_address_twice", {"worker": ["a:1", "a:1"]}, "worker", 0, "of its own"),
    )
    def test_errors(self, jobs, task_type, task_id, what):
        with self.assertRaisesRegex(ValueError, what):
            find_cluster(simple_resolver(jobs, task_type, task_id))

    def test_malformed_tf_config(self):
        workers, cluster, task = {"worker": ["a:1", "b:1"]}, "'cluster' in TF_CONFIG must", "'task' in TF_CONFIG must"
        for value, what in (
            ("{'cluster'", "not JSON"),
            ("[]", "JSON object"),
            *(({"cluster": value}, cluster) for value in (None, "a:1", ["a:1"])),
            *(({"cluster": {"worker": value}}, cluster) for value in (None, 3, "a:1,b:1", ["a:1", 3], {"one": "a:1"})),
            *(({"cluster": workers, "task": value}, task) for value in (None, 3, [1], "worker")),
            *(
                ({"cluster": workers, "task": {"type": "worker", "index": value}}, task)
                for value in (None, "one", -1, 1.5, True, [1])
            ),
        ):
            self.environment(TF_CONFIG=value)
            with self.assertRaisesRegex(ValueError, what, msg=value):
                find_cluster()

    def test_numbers_as_text(self):
        cluster, task = {"worker": {"0": "a:1", "1": "b:1"}}, {"type": "worker", "index": "1"}
        self.environment(TF_CONFIG={"cluster": cluster, "task": task})
        self.assertEqual(find_cluster(), Cluster(1, ("a:1", "b:1")))

    def test_immutable(self):
        with self.assertRaises(AttributeError):
            Cluster(0, ("a:1", "b:1")).process_index = 1
        with self.assertRaisesRegex(ValueError, "counted from 0"):
            Cluster(2, ("a:1", "b:1"))

    def test_devices_per_process(self):
        self.assertIsNone(devices_per_process())
        self.environment(**{DEVICES_VARIABLE: ""})
        self.assertIsNone(devices_per_process())
        self.environment(**{DEVICES_VARIABLE: "4"})
        self.assertEqual(devices_per_process(), 4)
        for value in ("0", "-1", "two", "1.5"):
            self.environment(**{DEVICES_VARIABLE: value})
            with self.assertRaisesRegex(ValueError, value):
                devices_per_process()
