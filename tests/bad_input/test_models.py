import keras
import numpy as np
from absl.testing import parameterized

from tests.bad_input.base import NAN, BadInput, dense_model, moe, moe_model, zeros
from tf_moe import analysis
from tf_moe.analysis.plots import plot_load, plot_perplexity
from tf_moe.analysis.scaling import step_cost
from tf_moe.layers import SparseMoE
from tf_moe.models import Perplexity, dense_twin, language_model


class ModelsTest(BadInput):
    @parameterized.named_parameters(
        ("vocabulary_text", lambda: language_model("10", []), ValueError, "vocabulary_size='10'"),
        ("vocabulary_zero", lambda: language_model(0, []), ValueError, "vocabulary_size=0"),
        ("width_fraction", lambda: language_model(9, [], width=8.0), ValueError, r"width=8\.0"),
        ("dropout_above", lambda: language_model(9, [], dropout=1.5), ValueError, "dropout=1.5"),
        ("dropout_text", lambda: language_model(9, [], dropout="a"), ValueError, "dropout='a'"),
        ("middle_layer", lambda: language_model(9, keras.layers.Dense(8)), TypeError, "list of layers.*middle=<Dense"),
        ("middle_words", lambda: language_model(9, ["moe"]), TypeError, r"middle=\['moe'\]"),
        ("middle_none", lambda: language_model(9, None), TypeError, "middle=None"),
        ("middle_width", lambda: language_model(9, [keras.layers.Dense(7)], width=8), ValueError, "8.*7"),
        ("twin_of_dense", lambda: dense_twin(keras.layers.Dense(3), 4), TypeError, "SparseMoE. Received: moe=<Dense"),
        ("twin_of_none", lambda: dense_twin(None, 4), TypeError, "moe=None"),
        ("twin_width_true", lambda: dense_twin(moe(), True), ValueError, "width=True"),
        ("twin_width_text", lambda: dense_twin(moe(), "4"), ValueError, "width='4'"),
        (
            "twin_of_layers",
            lambda: dense_twin(SparseMoE(2, k=1, expert=lambda: keras.layers.Dense(4)), 4),
            ValueError,
            "Only built-in experts.*expert=",
        ),
        ("perplexity_dtype", lambda: Perplexity(dtype="float33"), ValueError, "float33"),
        ("perplexity_argument", lambda: Perplexity(base=2), TypeError, "'base'"),
        ("perplexity_shapes", lambda: Perplexity().update_state([0, 1, 1], zeros(2, 2)), ValueError, r"\(3,\).*\(2, 2"),
    )
    def test_calls(self, call, error, pattern):
        self.check(call, error, pattern)


def cost(num_experts=4, width=8, expert_hidden=8, k=1, tokens=8, **arguments):
    return step_cost(num_experts, width, expert_hidden, k, tokens, **arguments)


def stability(**arguments):
    return analysis.measure_stability(moe_model(), moe_model(), [zeros(2, 4)], **arguments)


def special(layer="moe", labels=None, **arguments):
    labels = {"sign": lambda x: np.int32(x[:, 0] > 0)} if labels is None else labels
    return analysis.measure_specialisation(moe_model(name="moe"), [zeros(2, 4)], layer, labels, **arguments)


class AnalysisTest(BadInput):
    @parameterized.named_parameters(
        ("count_none", lambda: analysis.count(None), TypeError, "model=None. Pass a model"),
        ("count_layer", lambda: analysis.count(moe()), TypeError, "model=<SparseMoE"),
        (
            "count_unbuilt",
            lambda: analysis.count(keras.Sequential([keras.layers.Dense(3)], name="mine")),
            ValueError,
            "'mine', which is not. Begin it with a keras.Input",
        ),
        (
            "count_other_kinds",
            lambda: analysis.count(keras.Sequential([keras.Input((4, 4)), keras.layers.Conv1D(3, 1), moe()])),
            ValueError,
            "of type Conv1D",
        ),
        ("usage_none", lambda: analysis.measure_usage(None, []), TypeError, "model=None"),
        (
            "usage_unbuilt",
            lambda: analysis.measure_usage(keras.Sequential([moe()], name="mine"), []),
            ValueError,
            "'mine', which is not",
        ),
        ("usage_without", lambda: analysis.measure_usage(dense_model(), []), ValueError, "No SparseMoE.*<Dense"),
        ("usage_number", lambda: analysis.measure_usage(moe_model(), 3), TypeError, "'int'"),
        ("usage_width", lambda: analysis.measure_usage(moe_model(), [zeros(2, 5)]), ValueError, r"\(2, 5\)"),
        ("pairs_none", lambda: analysis.measure_co_activation(None, []), TypeError, "model=None"),
        ("pairs_without", lambda: analysis.measure_co_activation(dense_model(), []), ValueError, "No SparseMoE"),
        ("labels_list", lambda: special(labels=[]), TypeError, r"labels=\[\]. Pass a dictionary"),
        ("label_number", lambda: special(labels={"mine": 3}), TypeError, "'mine': 3"),
        ("label_layer", lambda: special(layer="other"), ValueError, "which calls .*Received: layer='other'"),
        ("resamples", lambda: special(resamples=-1), ValueError, "resamples=-1"),
        ("seed_negative", lambda: special(seed=-1), ValueError, "seed=-1"),
        ("seed_text", lambda: analysis.measure_all(moe_model(), [], seed="1"), ValueError, "seed='1'"),
        ("tops", lambda: analysis.measure_all(moe_model(), [], tops=0), ValueError, "tops=0"),
        ("all_labels", lambda: analysis.measure_all(moe_model(), [], labels={"a": "b"}), TypeError, "'a': 'b'"),
        ("stability_none", lambda: analysis.measure_stability(moe_model(), None, []), TypeError, "model=None"),
        (
            "stability_without",
            lambda: analysis.measure_stability(dense_model(), dense_model(), [zeros(2, 4)]),
            ValueError,
            r"layers of \[\] and of \[\] experts",
        ),
        ("stability_resamples", lambda: stability(resamples=-1), ValueError, "resamples=-1"),
        ("stability_seed", lambda: stability(seed="1"), ValueError, "seed='1'"),
        ("report_context", lambda: analysis.write_report("a.html", {}, context=-1), ValueError, "context=-1"),
        ("report_experts", lambda: analysis.write_report("a.html", {}, experts=0.5), ValueError, "experts=0.5"),
        ("places", lambda: analysis.labels.places(longest=0), ValueError, "longest=0"),
        ("monitor_batches", lambda: analysis.ExpertMonitor(3), TypeError, "'int'"),
        ("experts_zero", lambda: cost(0), ValueError, "num_experts=0"),
        ("experts_text", lambda: cost("4"), ValueError, "num_experts='4'"),
        ("pair_with_one_k", lambda: cost((4, 4)), ValueError, "must be a pair.*k=1"),
        ("one_level_with_pair", lambda: cost(k=(1, 1)), ValueError, "must be a pair.*num_experts=4"),
        ("k_above", lambda: cost(k=5), ValueError, "k=5, num_experts=4"),
        ("width_zero", lambda: cost(width=0), ValueError, "width=0"),
        ("hidden_none", lambda: cost(expert_hidden=None), ValueError, "expert_hidden=None"),
        ("tokens_zero", lambda: cost(tokens=0), ValueError, "tokens=0"),
        ("tokens_fraction", lambda: cost(tokens=8.5), ValueError, "tokens=8.5"),
        ("shards_zero", lambda: cost(shards=0), ValueError, "shards=0"),
        ("shards_uneven", lambda: cost(shards=3), ValueError, "divide evenly.*shards=3"),
        ("replicas_negative", lambda: cost(replicas=-2), ValueError, "replicas=-2"),
        ("dense_negative", lambda: cost(dense_parameters=-1), ValueError, "dense_parameters=-1"),
        ("bytes_zero", lambda: cost(number_bytes=0), ValueError, "number_bytes=0"),
        ("slots_negative", lambda: cost(slots=-1), ValueError, "slots=-1"),
        ("five_curves", lambda: plot_perplexity(dict.fromkeys("abcde", ([1], [2.0])), "a.png"), ValueError, "5 curves"),
        ("no_curve", lambda: plot_perplexity({}, "a.png"), ValueError, "0 curves"),
        ("no_points", lambda: plot_perplexity({"mine": ([], [])}, "a.png"), ValueError, "none for .'mine'"),
        ("unlike_points", lambda: plot_perplexity({"a": ([1, 2], [2.0])}, "a.png"), ValueError, r"\(2,\) and \(1,\)"),
        ("format", lambda: plot_load(np.ones(2), "a.no_such"), ValueError, "'no_such'"),
        (
            "load_matrix",
            lambda: plot_load(np.ones((1, 2)), "a.png"),
            ValueError,
            r"each expert.*\[\[1., 1.\]\]",
        ),
        ("load_empty", lambda: plot_load([], "a.png"), ValueError, r"load=array\(\[\]"),
        ("load_negative", lambda: plot_load([-1, 2], "a.png"), ValueError, r"\[-1, +2\]"),
        ("load_nan", lambda: plot_load([NAN, 2], "a.png"), ValueError, "nan"),
    )
    def test_calls(self, call, error, pattern):
        self.check(call, error, pattern)
