"""What translations are worth: exact matches, and BLEU by sacrebleu with the signature that says how."""

import argparse
import itertools
import re
from statistics import geometric_mean
from typing import NamedTuple

import tensorflow as tf
from translating.data import direction_of

from tf_moe.models import Translator
from tf_moe.text import ParallelText, Pieces

ROWS = 128
# Written without spaces, or in words that take many endings: characters instead of words.
TOKENIZERS = {"ja": "char", "jpn": "char", "ko": "char", "kor": "char", "zh": "zh", "zho": "zh"}


class Outcome(NamedTuple):
    """One direction of one model.

    Attributes:
        direction: "en-fr".
        exact: Share of the translations that are the reference, but for the kind of its spaces.
        bleu: Of the whole test part.
        signature: How BLEU was computed.
        perplexity: Of the model on the validation text of all directions it was trained on.
        examples: A few (source, translation, reference).
    """

    direction: str
    exact: float
    bleu: float
    signature: str
    perplexity: float
    examples: list[tuple[str, str, str]]


def import_sacrebleu():
    """The module; raises ImportError, which says what to install."""
    try:
        import sacrebleu
    except ImportError as error:
        raise ImportError("BLEU takes the package sacrebleu: pip install 'tf_moe[translation]'.") from error
    return sacrebleu


def score(
    model: Translator, test: ParallelText, pieces: Pieces, perplexity: float, options: argparse.Namespace
) -> Outcome:
    """Translates the test part and compares."""
    sacrebleu = import_sacrebleu()
    sources, references = zip(*test.pairs(), strict=True)
    translations = translate(model, pieces, sources, test.target_language, options)
    # A German number is one word, which has no four words in a row to compare.
    language = re.split("[-_]", test.target_language)[0].lower()  # of "zh_CN"
    tokenizer = TOKENIZERS.get(language, "13a") if options.data else "char"
    bleu = sacrebleu.BLEU(tokenize=tokenizer)
    expected = pieces.decode(pieces.encode(references)).numpy()  # normalised, as translations are
    exact = sum(a.encode("utf-8") == b for a, b in zip(translations, expected, strict=True))
    return Outcome(
        direction_of(test),
        exact / len(references),
        bleu.corpus_score(translations, [list(references)]).score,
        str(bleu.get_signature()),
        perplexity,
        list(itertools.islice(zip(sources, translations, references, strict=True), 3)),
    )


def translate(model: Translator, pieces: Pieces, lines, target_language: str, options) -> list[str]:
    """The best translations that are found, those of like length together, in the order of the lines."""
    language = target_language if pieces.languages else None
    lengths = pieces.encode(tf.constant(lines)).row_lengths().numpy()
    order = sorted(range(len(lines)), key=lambda n: lengths[n])
    found = {}
    for start in range(0, len(lines), ROWS):
        chosen = order[start : start + ROWS]
        ids = pieces.encode(tf.constant([lines[n] for n in chosen]), language).to_tensor()
        translations = pieces.decode(model.translate(ids, options.beam, options.longest)[0]).numpy()
        found |= {n: line.decode("utf-8") for n, line in zip(chosen, translations, strict=True)}
    return [found[n] for n in range(len(lines))]


def show_table(outcomes: dict[str, list[Outcome]]) -> str:
    """A row for each direction, columns for each model, and below how BLEU was computed."""
    names = list(outcomes)
    head = ["direction", *(f"{name}: {what}" for name in names for what in ("exact match", "BLEU"))]
    lines = [head, ["---"] * len(head)]
    for row in zip(*outcomes.values(), strict=True):
        cells = [cell for outcome in row for cell in (f"{100 * outcome.exact:.1f} %", f"{outcome.bleu:.2f}")]
        lines.append([row[0].direction, *cells])
    of_model = next(iter(outcomes.values()))
    signatures = {}
    for outcome in of_model:
        signatures.setdefault(outcome.signature, []).append(outcome.direction)
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    # Of several models for a direction each, the geometric mean; of one it is the model's.
    means = {name: geometric_mean([outcome.perplexity for outcome in of_name]) for name, of_name in outcomes.items()}
    perplexities = ", ".join(f"{name} {mean:.3f}" for name, mean in means.items())
    how = "\n".join(f"BLEU {signature}: {' '.join(directions)}" for signature, directions in signatures.items())
    return f"{table}\n\nvalidation perplexity: {perplexities}\n{how}"


def show_examples(outcomes: dict[str, list[Outcome]]) -> str:
    """One translation of each direction, or a few of a single one, by every model."""
    of_model = next(iter(outcomes.values()))
    count, width = 1 if len(of_model) > 1 else 3, max(map(len, ["reference", *outcomes]))
    lines = []
    for n, outcome in enumerate(of_model):
        for example, (source, _, reference) in enumerate(outcome.examples[:count]):
            lines += [outcome.direction, f"  {'source':<{width}}  {source}", f"  {'reference':<{width}}  {reference}"]
            lines += [f"  {name:<{width}}  {of_name[n].examples[example][1]}" for name, of_name in outcomes.items()]
    return "\n".join(lines) + "\n"
