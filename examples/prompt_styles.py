"""One conversation in the styles that different models read, and a call in one of them."""

import llmkit
from llmkit.prompts import get_style, guess_style
from llmkit.types import Message

turns = [Message("user", "Hello!"), Message("assistant", "Hi!"), Message("user", "How are you?")]
for name in ("human_bot", "llama2", "chatml"):
    print(f"{name}: {get_style(name).render_chat(turns)!r}")

print(guess_style("lmsys/vicuna-7b-v1.5").name)

llm = llmkit.load(max_tokens=24)
print(llm.run("What is the capital of France?", prompt_style="human_bot"))
