"""Training data: records from files, rendered in a prompt style, as token ids with labels.

`datasets` and `pyarrow` are imported when they are needed, and not before.
"""

from llmkit.context import limit_new_tokens
from llmkit.training_data.dataset import load_tokenizer, prepare_dataset, to_dataset
from llmkit.training_data.encode import EncodingOptions, Example, encode_records
from llmkit.training_data.records import Record, parse_record, read_rows

__all__ = [
    "EncodingOptions",
    "Example",
    "Record",
    "encode_records",
    "limit_new_tokens",
    "load_tokenizer",
    "parse_record",
    "prepare_dataset",
    "read_rows",
    "to_dataset",
]
