"""Owns the order of work that builds the embedded model: draw the data, train tokenizer and model, write the files.

Run it as `python -m tools.tiny.build`; it prints its progress. On a machine with other work, set
OMP_WAIT_POLICY=PASSIVE: threads that spin while they wait are many times slower there. It does not measure the result:
see `evaluate.py`.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from tools.tiny.batches import encode
from tools.tiny.export import save_gguf, save_model
from tools.tiny.mixture import N_TRAIN, training_examples
from tools.tiny.tokenizer import save_tokenizer, train_tokenizer
from tools.tiny.train import Recipe, train

FOLDER = Path(__file__).parents[2] / "llmkit" / "tiny"


def build(folder: Path, n_train: int, recipe: Recipe) -> None:
    """Builds every file of the embedded model except its card, in `folder`."""
    examples = training_examples(n_train)
    _say(f"drew {len(examples)} training examples")
    tokenizer = train_tokenizer(examples)
    documents = encode(examples, tokenizer)
    _say(f"{sum(len(one.ids) for one in documents)} tokens, vocabulary {tokenizer.get_vocab_size()}")
    model = train(documents, tokenizer, recipe)
    folder.mkdir(parents=True, exist_ok=True)
    save_tokenizer(tokenizer, folder)
    save_model(model, folder)
    save_gguf(folder)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Parses the command line and builds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--examples", type=int, default=N_TRAIN, help="size of the training set")
    parser.add_argument("--minutes", type=float, default=25.0, help="cap on training; a shorter run knows less")
    options = parser.parse_args()
    started = time.monotonic()
    build(options.folder, options.examples, Recipe(cap_s=60.0 * options.minutes))
    _say(f"built {options.folder} in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
