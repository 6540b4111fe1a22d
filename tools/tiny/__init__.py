"""The embedded demo model: generated data, tokenizer, training, export and evaluation."""
