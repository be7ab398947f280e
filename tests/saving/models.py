"""The models that are saved: few, so that tests are cheap, each with many kinds of layers, one to an output."""

import keras
import numpy as np

import tf_moe
from tf_moe.layers import LSTM, SampledSoftmax, SampledSoftmaxLoss, SparseMoE

VOCABULARY, WIDTH = 40, 8
TWO_LEVELS = {"num_experts": (2, 2), "k": (2, 1)}
POLICIES = ("mixed_bfloat16", "mixed_float16", "bfloat16", "float64")


def gates() -> keras.Model:
    """Every gate, and one that two layers share; Adam."""
    own = tf_moe.gates.NoisyTopK(4, 2, "glorot_uniform", noise_kernel_initializer="ones", seed=3)
    shared = tf_moe.gates.NoisyTopK(4, 2, seed=7)
    return branches(
        keras.optimizers.Adam(0.1),
        noisy=moe("noisy"),
        one=moe("one", k=1, capacity_factor=2.0),
        hierarchical=moe("hierarchical", capacity_factor=2.0, **TWO_LEVELS),
        balanced=moe("balanced", gate="strictly_balanced", capacity_factor=2.0),
        gate_object=moe("gate_object", gate=own, capacity_factor=2.0),
        shared_gate=[
            moe("shared_1", gate=shared, capacity_factor=2.0),
            moe("shared_2", gate=shared, capacity_factor=2.0, importance_weight=0.3),
        ],
    )


def more_gates() -> keras.Model:
    """The gates of later papers, each with what is its own; Adam."""
    switch = tf_moe.gates.Switch(4, kernel_initializer="glorot_uniform", seed=3, aux_loss_weight=0.1, jitter=0.05)
    noisy = tf_moe.gates.NoisyTopK(4, 2, seed=5, z_loss_weight=0.01, normalize="all")
    return branches(
        keras.optimizers.Adam(0.1),
        switch=moe("switch", k=1, gate=switch, capacity_factor=2.0, load_weight=0.2),
        switch_by_name=moe("switch_by_name", k=None, gate="switch", capacity_factor=2.0),
        dense_softmax=moe("dense_softmax", k=None, gate="dense_softmax", capacity_factor=1.0),
        expert_choice=moe("expert_choice", gate="expert_choice", capacity_factor=1.0),
        sinkhorn=moe("sinkhorn", gate=tf_moe.gates.Sinkhorn(4, 2, iterations=3), capacity_factor=2.0),
        normalize=moe("normalize", gate=noisy, capacity_factor=2.0),
    )


def gates_by_id_and_bias() -> keras.Model:
    """Gates that go by ids, here the words', and the one that has a bias; Adam."""
    noisy = tf_moe.gates.NoisyTopK(4, 2, "glorot_uniform", seed=3, num_gates=VOCABULARY)
    levels = tf_moe.gates.Hierarchical((2, 2), (2, 1), "glorot_uniform", seed=4, num_gates=VOCABULARY + 1)
    return branches(
        keras.optimizers.Adam(0.1),
        bias=moe("bias", gate="bias_balanced", capacity_factor=2.0),
        hash=moe("hash", gate="hash", capacity_factor=2.0, seed=5),
        several=moe("several", gate=noisy, capacity_factor=2.0),
        several_levels=moe("several_levels", gate=levels, capacity_factor=2.0, **TWO_LEVELS),
    )


def experts() -> keras.Model:
    """Every dispatcher and kind of expert, and the LSTM; AdamW with an average of the weights."""
    layers = [
        keras.layers.Dense(WIDTH),
        keras.layers.Dense(WIDTH, "relu", use_bias=False),
        keras.Sequential([keras.layers.Dense(3, "relu"), keras.layers.Dense(WIDTH)]),
        keras.layers.Identity(),
    ]
    return branches(
        keras.optimizers.AdamW(0.1, use_ema=True, ema_momentum=0.5),
        capacity=moe("capacity", capacity_factor=1.0, output_activation="sigmoid"),
        by_weight=moe("by_weight", capacity_factor=0.7, drop_by="weight", kernel_initializer="he_normal"),
        bias=moe("bias", use_bias=True, activation="gelu", kernel_regularizer="l2", capacity_factor=2.0),
        recompute=moe("recompute", recompute=True, kernel_constraint="unit_norm", capacity_factor=1.0),
        function=moe("function", expert=lambda: keras.layers.Dense(WIDTH, "tanh")),
        shared_expert=moe("shared_expert", shared_expert_hidden=5, expert_dropout=0.3, use_bias=True),
        list=moe("list", expert=layers, capacity_factor=1.0, recompute=True),
        projection=LSTM(6, projection=WIDTH, return_sequences=True, recurrent_dropout=0.1),
    )


def policies() -> keras.Model:
    """Every dtype policy but float32, which all others have; SGD with momentum."""
    layers = {policy: moe(policy, dtype=policy, capacity_factor=1.0) for policy in POLICIES}
    return branches(keras.optimizers.SGD(0.1, momentum=0.9, clipnorm=1.0), **layers)


def policies_hierarchical() -> keras.Model:
    """The same on two levels."""
    layers = {policy: moe(policy, dtype=policy, **TWO_LEVELS) for policy in POLICIES}
    return branches(keras.optimizers.SGD(0.1, momentum=0.9, clipnorm=1.0), **layers)


def sampled_softmax() -> keras.Model:
    """The softmax and its loss, which is scaled."""
    chain = [LSTM(WIDTH, return_sequences=True, dropout=0.1), SampledSoftmax(VOCABULARY, num_sampled=8)]
    model = branches(keras.optimizers.Adam(0.1), words=chain)
    model.compile(keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.1)), {"words": SampledSoftmaxLoss()})
    return model


def language_model() -> keras.Model:
    """The paper's, with an optimizer for the experts and one for the rest."""
    model = tf_moe.models.language_model(VOCABULARY, [moe("moe", capacity_factor=2.0)], width=WIDTH)
    optimizer = tf_moe.optimizers.optimizer_for(
        experts=tf_moe.optimizers.FactoredAdam(tf_moe.optimizers.WarmupInverseSqrt(0.1, warmup_steps=4), beta_1=0.9),
        others=keras.optimizers.Adam(0.1),
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, weighted_metrics=[tf_moe.models.Perplexity()])
    return model


def translator() -> keras.Model:
    """The translation model, from and to the same ids; another gate and another attention than its own."""
    sizes = {"width": WIDTH, "lstm_units": 12, "encoder_layers": 2, "expert_hidden": 6, "dropout": 0.1}
    arguments = {"num_experts": 4, "k": 2, "gate": "noisy_top_k", "attention": "additive"}
    translator = tf_moe.models.Translator(VOCABULARY, **sizes, **arguments, moe={"capacity_factor": 2.0})
    ids = keras.Input((None,), dtype="int32")
    model = keras.Model(ids, translator((ids, ids)))
    model.compile(keras.optimizers.Adam(0.1), tf_moe.models.SmoothedCrossentropy(0.1))
    return model


MODELS = {
    f.__name__: f
    for f in (
        gates,
        more_gates,
        gates_by_id_and_bias,
        experts,
        policies,
        policies_hierarchical,
        sampled_softmax,
        language_model,
        translator,
    )
}


def distinct_ids(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Ids, none of them twice but that of padding.

    Of two equal tokens an expert with one place left takes the first by their order, but where a matrix product rounds
    the rows differently, as it may in another runtime or on another processor, it takes any.
    """
    ids = rng.permutation(np.arange(1, VOCABULARY))[: np.prod(shape)].reshape(shape)
    return np.where(rng.random(shape) < 0.1, 0, ids).astype("int32")


def inputs_and_targets(model: keras.Model, rng: np.random.Generator):
    """Ids `(6, 5)`, some of them padding, and what each output is to learn: a vector, or the id itself."""
    ids = distinct_ids(rng, 6, 5)
    if not isinstance(model.output, dict):
        return ids, ids
    return ids, {
        name: ids if output.shape[-1] == VOCABULARY else rng.standard_normal((*ids.shape, WIDTH)).astype("float32")
        for name, output in model.output.items()
    }


def moe(name: str, **arguments) -> SparseMoE:
    return SparseMoE(**{"num_experts": 4, "expert_hidden": 6, "k": 2, **arguments}, name=name)


def branches(optimizer: keras.optimizers.Optimizer, **layers) -> keras.Model:
    """Ids -> an output for each layer, or for each chain of layers, under its name."""
    ids = keras.Input((None,), dtype="int32")
    vectors = keras.initializers.RandomNormal(stddev=1.0)  # far enough from one another for clear choices
    x = keras.layers.Embedding(VOCABULARY, WIDTH, mask_zero=True, embeddings_initializer=vectors)(ids)
    outputs = {}
    for name, chain in layers.items():
        outputs[name] = x
        for layer in chain if isinstance(chain, list) else [chain]:
            by_id = isinstance(layer, SparseMoE) and layer.gate.takes_gate_id
            outputs[name] = layer(outputs[name], gate_id=ids) if by_id else layer(outputs[name])
    model = keras.Model(ids, outputs)
    model.compile(optimizer, "mse")
    return model
