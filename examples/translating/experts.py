"""What the experts of both mixtures are for, as pages to read: the paper's Table 9."""

from pathlib import Path

import tensorflow as tf

from tf_moe.analysis import top_inputs, write_top_inputs
from tf_moe.models import Translator
from tf_moe.text import Pieces

LAYERS = ("encoder_moe", "decoder_moe")  # of the source, and of the target


def write_experts(model: Translator, pieces: Pieces, batches: tf.data.Dataset, directory: Path) -> None:
    """The pieces with the highest gate values of each expert, in their sentences, a page for each mixture."""
    texts = ["", *(piece.replace("\N{LOWER ONE EIGHTH BLOCK}", " ") for piece in pieces.tokens[1:])]  # 0 is padding
    for part, layer in enumerate(LAYERS):
        tops = top_inputs(model, batches, layer, ids_of=lambda inputs, part=part: inputs[part])
        title = f"What each expert of {layer} is for"
        file = directory / f"{model.name}-{layer}.html"
        write_top_inputs(file, tops, lambda ids: [texts[n] for n in ids], title, separator="")
