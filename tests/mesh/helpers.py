"""What tests on a mesh share."""

import numpy as np
import tensorflow as tf
from tensorflow.experimental import dtensor

from tf_moe.distribute.batches import place_batch
from tf_moe.distribute.strategy import ExpertParallelStrategy
from tf_moe.distribute.values import OnMesh, unwrap
from tf_moe.distribute.variables import to_plain

# Devices, and replicas of each expert. The last splits a batch over the replicas, the others over the shards.
MESHES = {"1": (1, 1), "2": (2, 1), "4": (4, 1), "2x2": (4, 2), "4x2": (8, 4)}


def strategy_on(devices: int = 2, replicas: int = 1) -> ExpertParallelStrategy:
    """A strategy over the first logical CPUs."""
    shape = {"replica": replicas, "expert": devices // replicas}
    return ExpertParallelStrategy(devices=[f"CPU:{n}" for n in range(devices)], mesh_shape=shape)


class Program:
    """A function of tensors of all devices, as one program on the mesh: plain arrays in, plain arrays out.

    Arrays are split over their first axis where that divides evenly, as batches are.

    Attributes:
        specs: The layouts of the latest results, as a list of axes for each.
        traces: How often the function has been traced.
    """

    def __init__(self, strategy, function):
        self._strategy = strategy
        self._function = tf.function(lambda *arguments: strategy.run(function, arguments))
        self.specs = []

    def __call__(self, *arrays):
        mesh = self._strategy.mesh
        return tf.nest.map_structure(lambda x: to_plain(x, mesh).numpy(), self.run(*arrays))

    def run(self, *arrays):
        """The results where they are, on the mesh."""
        arguments = [OnMesh(place_batch(np.asarray(x), self._strategy.shards)) for x in arrays]
        results = unwrap(self._function(*arguments))
        self.specs = [specs_of(x) for x in tf.nest.flatten(results)]
        return results

    @property
    def traces(self):
        return self._function.experimental_get_tracing_count()


def specs_of(x) -> list[str]:
    """The axes of the mesh that the dimensions of a DTensor are split over; "" for none."""
    return ["" if spec == dtensor.UNSHARDED else spec for spec in dtensor.fetch_layout(x).sharding_specs]
