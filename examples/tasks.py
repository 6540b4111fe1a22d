"""Label and extend rows with tasks; a row that fails gives None and its reason."""

import llmkit
from llmkit.tasks import FewShot, QuestionAnswering, Translation, failure

llm = llmkit.load(max_tokens=24)

questions = QuestionAnswering(name="ask", llm=llm)
rows = questions.apply([{"question": "What is the capital of Peru?"}, {"question": 7}])
for row in rows:
    print(row["question"], "->", row["answer"] or failure(row, "ask"))

french = Translation(name="french", llm=llm, target="French")
print([row["translation"] for row in french.apply([{"text": "Good morning"}, {"text": "Thank you"}])])

solved = [{"question": f"What is the capital of {a}?", "answer": b} for a, b in [("Italy", "Rome"), ("Japan", "Tokyo")]]
style = {
    "name": "question-answer",
    "input_prefix": "Question: ",
    "response_prefix": "\nAnswer:",
    "response_lead": " ",
    "turn_separator": "\n",
    "stop": ["\n"],
}
few_shot = FewShot(name="shots", llm=llm, examples=solved, prompt_style=style)
[row] = few_shot.apply([{"question": "What is the capital of Norway?"}])
print(row["answer"], row["llmkit_metadata"])
print(questions.statistics.rows, "rows,", questions.statistics.failures, "failed")
