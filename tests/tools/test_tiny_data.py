"""The embedded model's data and files: what is held out stays out, labels balance, sizes hold, files load."""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools.tiny.chat import chat
from tools.tiny.countries import COUNTRIES, capital_turn
from tools.tiny.data import BOS, EOS, SPECIAL_TOKENS, Example, core, is_held_out, normalise
from tools.tiny.entailment import LABELS
from tools.tiny.mixture import held_out_examples, training_examples

FOLDER = Path(__file__).parents[2] / "llmkit" / "tiny"
MAX_BYTES = 8_000_000
MAX_PARAMETERS = 4_000_000


@pytest.fixture(scope="module")
def trained() -> list[Example]:
    return training_examples()


@pytest.fixture(scope="module")
def held_out() -> list[Example]:
    return held_out_examples()


def hypothesis_of(example: Example) -> str:
    return normalise(example.items[0].split(" / ")[0])


def test_no_held_out_item_is_in_training_case_and_punctuation_apart(
    trained: list[Example], held_out: list[Example]
) -> None:
    seen = {normalise(item) for example in trained for item in example.items}
    assert [example.items[-1] for example in held_out if normalise(example.items[-1]) in seen] == []


def test_no_held_out_scene_wording_or_deed_is_in_training(trained: list[Example], held_out: list[Example]) -> None:
    keys = {key for example in trained for key in example.keys}
    assert [example.keys[-1] for example in held_out if example.keys[-1] in keys] == []


def test_names_are_seen_or_unseen_in_training_as_their_row_says(
    trained: list[Example], held_out: list[Example]
) -> None:
    seen = {word for example in trained if "summaries" in example.task for word in example.expected.split()}
    trained_names = [one.expected for one in held_out if one.task == "summaries, trained names"]
    unseen_names = [one.expected for one in held_out if one.task == "summaries, unseen names"]
    assert [name for name in trained_names if name.split()[0] not in seen] == []
    assert [name for name in unseen_names if name.split()[0] in seen] == []


def test_held_out_items_do_not_repeat(held_out: list[Example]) -> None:
    assert max(Counter(normalise(example.prompt) for example in held_out).values()) == 1


def test_training_set_does_not_depend_on_how_much_is_drawn() -> None:
    assert training_examples(50) == training_examples(80)[:50]


def test_entailment_labels_are_balanced(trained: list[Example], held_out: list[Example]) -> None:
    assert Counter(one.label for one in held_out if one.label) == dict.fromkeys(LABELS, 200)
    counts = Counter(one.label for one in trained if one.label)
    assert max(counts.values()) < 1.05 * min(counts.values())


def test_each_common_hypothesis_has_all_three_labels_in_training(trained: list[Example]) -> None:
    labels: dict[str, Counter[str]] = defaultdict(Counter)
    for example in trained:
        if example.label:
            labels[hypothesis_of(example)][example.label] += 1
    common = [counts for counts in labels.values() if counts.total() >= 30]
    assert len(common) > 100
    assert all(set(counts) == set(LABELS) for counts in common)


def test_hypothesis_alone_does_not_give_the_label_away(trained: list[Example], held_out: list[Example]) -> None:
    labels: dict[str, Counter[str]] = defaultdict(Counter)
    for example in trained:
        if example.label:
            labels[hypothesis_of(example)][example.label] += 1
    pairs = [example for example in held_out if hypothesis_of(example) in labels and example.label]
    assert len(pairs) > 550
    right = sum(labels[hypothesis_of(one)].most_common(1)[0][0] == one.label for one in pairs)
    assert 0.27 < right / len(pairs) < 0.40


def test_every_country_is_trained_in_chat_and_few_shot(trained: list[Example]) -> None:
    for task in ("capitals, chat", "capitals, few-shot"):
        assert {one.expected for one in trained if one.task == task} == {one.capital for one in COUNTRIES}


def test_about_195_countries_each_with_one_entry() -> None:
    assert 190 <= len({one.name for one in COUNTRIES}) == len(COUNTRIES) <= 200


@given(st.text())
def test_split_ignores_case_and_punctuation(text: str) -> None:
    assert is_held_out(core(text)) == is_held_out(core(normalise(text) + "?!"))


def test_split_ignores_how_politely_one_asks() -> None:
    asked = [
        "What is the capital of Chad?",
        "hey, what is the capital of chad",
        "Please, what is the capital of Chad, please?",
    ]
    assert {core(one) for one in asked} == {"what is the capital of chad"}


@pytest.mark.parametrize("name", ["model.safetensors", "model.gguf"])
def test_weight_files_are_at_most_eight_megabytes(name: str) -> None:
    assert 1_000_000 < (FOLDER / name).stat().st_size <= MAX_BYTES


def test_model_has_at_most_four_million_parameters_in_float16() -> None:
    raw = (FOLDER / "model.safetensors").read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    header.pop("__metadata__", None)
    n_parameters = sum(_n_elements(tensor["shape"]) for tensor in header.values())
    assert 1_000_000 < n_parameters <= MAX_PARAMETERS
    assert {tensor["dtype"] for tensor in header.values()} == {"F16"}
    assert json.loads((FOLDER / "config.json").read_text())["dtype"] == "float32"


def _n_elements(shape: list[int]) -> int:
    total = 1
    for length in shape:
        total *= length
    return total


def test_tokenizer_begins_with_bos_and_knows_the_special_tokens() -> None:
    tokenizer = pytest.importorskip("transformers").AutoTokenizer.from_pretrained(FOLDER)
    assert tokenizer("Hello").input_ids[0] == tokenizer.bos_token_id == tokenizer.convert_tokens_to_ids(BOS)
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == list(range(len(SPECIAL_TOKENS)))


def test_tokenizer_round_trips_unicode() -> None:
    tokenizer = pytest.importorskip("tokenizers").Tokenizer.from_file(str(FOLDER / "tokenizer.json"))

    @given(st.text(st.characters(exclude_categories=["Cs"])).filter(lambda one: "<|" not in one))
    def round_trips(text: str) -> None:
        assert tokenizer.decode(tokenizer.encode(text).ids) == text

    round_trips()


def test_chat_template_renders_what_was_trained() -> None:
    tokenizer = pytest.importorskip("transformers").AutoTokenizer.from_pretrained(FOLDER)
    rng = random.Random(0)
    turns = [capital_turn(rng), capital_turn(rng, follow_up=True)]
    example = chat("conversations", turns, random.Random(4))
    messages = [
        {"role": "user", "content": example.items[0]},
        {"role": "assistant", "content": turns[0].reply},
        {"role": "user", "content": example.items[1]},
    ]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert rendered == BOS + example.prompt


def test_gguf_holds_the_same_tokens_and_weights() -> None:
    gguf = pytest.importorskip("gguf")
    weights = pytest.importorskip("safetensors.numpy").load_file(FOLDER / "model.safetensors")
    reader = gguf.GGUFReader(FOLDER / "model.gguf")
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    assert (tensors["token_embd.weight"] == weights["model.embed_tokens.weight"]).all()
    assert len(tensors) == len(weights)
    config = json.loads((FOLDER / "config.json").read_text())
    assert reader.get_field("tokenizer.ggml.eos_token_id").contents() == config["eos_token_id"]
    tokens = reader.get_field("tokenizer.ggml.tokens").contents()
    assert len(tokens) == config["vocab_size"]
    assert tokens[config["eos_token_id"]] == EOS


def test_model_card_states_what_was_measured() -> None:
    card = (FOLDER / "README.md").read_text("utf-8")
    assert "demo" in card
    assert {one.task for one in held_out_examples()} <= {
        cell.strip() for line in card.splitlines() if line.startswith("|") for cell in line.split("|")
    }
