"""Writing a conversation to a file: all of it or nothing.

It knows messages and files, and not where the conversation comes from.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Sequence
from pathlib import Path

from llmkit.types import Message


def save_transcript(path: Path, messages: Sequence[Message]) -> None:
    """Write messages as JSON lines. Whatever interrupts it, a file that was there before stays whole.

    Raises:
        OSError: it cannot be written; the file is as it was.
    """
    # A link's target is replaced, not the link.
    target = path.resolve()
    staged = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        with staged.open("x", encoding="utf-8") as file:
            file.writelines(json.dumps(message.to_dict(), ensure_ascii=False) + "\n" for message in messages)
            file.flush()
            os.fsync(file.fileno())
        os.replace(staged, target)
    finally:
        staged.unlink(missing_ok=True)
