from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from llmkit.errors import ExtraUnavailable, InvalidRequest, UnsupportedFeature
from llmkit.training_data import load_tokenizer, prepare_dataset

TINY = Path(__file__).parents[2] / "llmkit" / "tiny"
ROWS = [{"q": f"Where is box {n}?", "a": f"Box {n} is on shelf {n % 3}."} for n in range(24)]
NAMES = {"q": "input", "a": "output"}


def test_the_trainer_takes_it_as_it_is_and_the_loss_falls_in_30_steps(tmp_path: Path) -> None:
    data = prepare_dataset(ROWS, load_tokenizer(), data_col_dict=NAMES, prompt_type="human_bot", train_on_inputs=False)
    model: Any = AutoModelForCausalLM.from_pretrained(TINY)
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=30, per_device_train_batch_size=2, learning_rate=1e-3, logging_steps=5,
        report_to=[], save_strategy="no", disable_tqdm=True, use_cpu=True, seed=1, dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = Trainer(model=model, args=arguments, train_dataset=data)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 6
    assert losses[-1] < losses[0] / 2


def test_rows_come_in_order_padded_to_the_longest_with_nothing_to_learn_there() -> None:
    rows = [{"input": "a"}, {"input": "a much longer text than that"}]
    data = prepare_dataset(rows, load_tokenizer())
    assert isinstance(data, datasets.Dataset)
    short, long = data[0], data[1]
    n_pad = len(short["input_ids"]) - sum(short["attention_mask"])
    assert n_pad > 0
    assert short["labels"][-n_pad:] == [-100] * n_pad
    assert short["labels"][:-n_pad] == short["input_ids"][:-n_pad]
    assert sum(long["attention_mask"]) == len(long["input_ids"]) == len(short["input_ids"])
    ragged = prepare_dataset(rows, load_tokenizer(), pad=False)
    assert ragged[0]["input_ids"] == short["input_ids"][:-n_pad]


def test_a_file_and_its_rows_give_the_same(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(ROWS))
    from_file = prepare_dataset(path, load_tokenizer(), data_col_dict=NAMES)
    assert from_file[:] == prepare_dataset(ROWS, load_tokenizer(), data_col_dict=NAMES)[:]


def test_nothing_left_is_an_error() -> None:
    with pytest.raises(InvalidRequest, match="at least one example"):
        prepare_dataset([], load_tokenizer())
    with pytest.raises(InvalidRequest, match="cut and dropped"):
        prepare_dataset([{"input": "a b c d e"}], load_tokenizer(), cutoff_len=2, drop_truncations=True)


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(TypeError, match="cutof_len"):
        prepare_dataset(ROWS, load_tokenizer(), cutof_len=3)


def test_without_datasets_the_error_has_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "datasets":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ExtraUnavailable, match=r'pip install "llmkit\[data\]"'):
        prepare_dataset([{"input": "a"}], load_tokenizer())


def test_a_backend_without_tokenizers_says_so() -> None:
    with pytest.raises(UnsupportedFeature, match="no tokenizer to prepare data with"):
        load_tokenizer("http://localhost:1/v1#x")
