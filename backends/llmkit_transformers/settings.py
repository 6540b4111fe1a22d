"""What a model's own config and generation config ask for: as our parameters, or left to `generate`.

Every field is honoured, routed or refused; none is lost.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any, cast

from transformers import GenerationConfig

from llmkit.errors import ModelInvalid, ParameterError
from llmkit.params import GenerationParams
from llmkit_transformers.loading import LoadedModel
from llmkit_transformers.sampling import UNNAMED_FILTERS

_OURS = {
    "max_new_tokens": "max_tokens",
    "max_length": "max_length",
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "typical_p": "typical_p",
    "do_sample": "do_sample",
    "num_return_sequences": "num_return_sequences",
    "num_beams": "num_beams",
    "early_stopping": "early_stopping",
    "length_penalty": "length_penalty",
    "repetition_penalty": "repetition_penalty",
    "stop_strings": "stop_token",
    "pad_token_id": "pad_token_id",
    "eos_token_id": "eos_token_id",
}
_REFUSED = (
    "assistant_early_exit",
    "constraints",
    "diversity_penalty",
    "dola_layers",
    "force_words_ids",
    "num_beam_groups",
    "penalty_alpha",
    "prompt_lookup_num_tokens",
    "token_healing",
    "watermarking_config",
)
_ABOUT_THE_FILE = ("_from_model_config", "transformers_version")
_NEUTRAL = {"num_beam_groups": 1}
APPLIED_BY_GENERATE = (
    "bad_words_ids",
    "begin_suppress_tokens",
    "encoder_no_repeat_ngram_size",
    "encoder_repetition_penalty",
    "exponential_decay_length_penalty",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "guidance_scale",
    "max_time",
    "min_length",
    "min_new_tokens",
    "no_repeat_ngram_size",
    "remove_invalid_values",
    "renormalize_logits",
    "sequence_bias",
    "suppress_tokens",
)
"""Fields that `generate` itself applies, many of them by how long the prompt or the text is."""

_WINDOW_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """A model's generation config, taken apart.

    Attributes:
        config: the whole of it, as it was.
        params: the fields that are parameters of llmkit.
    """

    config: GenerationConfig
    params: GenerationParams

    @property
    def unnamed(self) -> dict[str, Any]:
        """The fields that are set and have no name in llmkit, which `generate` or our own filters apply."""
        set_here = self.config.to_diff_dict()
        return {name: set_here[name] for name in sorted(set_here) if name not in (*_OURS, *_ABOUT_THE_FILE)}

    @classmethod
    def taken_from(cls, loaded: LoadedModel) -> ModelSettings:
        """Take over the fields that llmkit applies, so that `generate` does not apply them again; the rest stays.

        Raises:
            ModelInvalid: a field can be neither applied nor left to `generate`, or has an impossible value.
        """
        config = deepcopy(loaded.model.generation_config or GenerationConfig())
        refused = [name for name in _REFUSED if getattr(config, name, None) not in (None, False, 0, _NEUTRAL.get(name))]
        if refused:
            raise ModelInvalid(
                f"{loaded.files.name!r} sets {refused[0]} in its generation config; llmkit cannot honour it"
            )
        left = deepcopy(config)
        for name in (*_OURS, *UNNAMED_FILTERS):
            setattr(left, name, None)
        loaded.model.generation_config = left
        return cls(config, _params(config, loaded))


def _params(config: GenerationConfig, loaded: LoadedModel) -> GenerationParams:
    values: dict[str, Any] = {ours: getattr(config, theirs) for theirs, ours in _OURS.items()}
    if values["eos_token_id"] is None:
        values["eos_token_id"] = loaded.tokenizer.eos_token_id
    if values["pad_token_id"] is None:
        values["pad_token_id"] = loaded.tokenizer.pad_token_id
    if values["pad_token_id"] not in range(vocabulary_size(loaded)):
        # Some models name -1, or a token that was added to the tokenizer alone; padding is masked, any token does.
        values["pad_token_id"] = None
    if loaded.model.config.is_encoder_decoder and values["max_length"] is not None:
        # Here transformers counts the decoder's tokens alone, its start token included.
        values["max_tokens"] = values["max_tokens"] or max(1, values["max_length"] - 1)
        values["max_length"] = None
    try:
        return GenerationParams(**values)
    except ParameterError as error:
        raise ModelInvalid(f"{loaded.files.name!r} has an impossible generation config: {error}") from error


def vocabulary_size(loaded: LoadedModel) -> int:
    """Tokens that the model has embeddings for; a tokenizer may know more or fewer."""
    return int(cast("Any", loaded.model.get_input_embeddings()).weight.shape[0])


def window(config: Any) -> int | None:
    """Positions that a model has; None where its config names none."""
    # An encoder-decoder such as T5 may name `n_positions` and count them relatively, without any limit.
    names = _WINDOW_NAMES[:1] if config.is_encoder_decoder else _WINDOW_NAMES
    sizes = (getattr(config, name, None) for name in names)
    return next((size for size in sizes if isinstance(size, int) and size > 0), None)
