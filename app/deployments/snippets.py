"""Programs to copy, the shortest ones that ask a model: three languages and LangChain. The tests run each as it is."""

from dataclasses import dataclass

_CURL = """curl {base}/chat/completions \\
  -H "Authorization: Bearer $GPT_BUILDER_API_KEY" \\
  -H "Content-Type: application/json" \\
  -d '{{
    "model": "{model}",
    "messages": [{{"role": "user", "content": "{question}"}}]
  }}'
"""

_PYTHON = """# pip install openai
import os

from openai import OpenAI

client = OpenAI(base_url="{base}", api_key=os.environ["GPT_BUILDER_API_KEY"])
answer = client.chat.completions.create(
    model="{model}",
    messages=[{{"role": "user", "content": "{question}"}}],
)
print(answer.choices[0].message.content)
"""

_JAVASCRIPT = """// Node 18 or newer; save as ask.mjs
const answer = await fetch("{base}/chat/completions", {{
  method: "POST",
  headers: {{
    Authorization: `Bearer ${{process.env.GPT_BUILDER_API_KEY}}`,
    "Content-Type": "application/json",
  }},
  body: JSON.stringify({{
    model: "{model}",
    messages: [{{ role: "user", content: "{question}" }}],
  }}),
}});
if (!answer.ok) throw new Error(await answer.text());
console.log((await answer.json()).choices[0].message.content);
"""

_LANGCHAIN = """# pip install langchain-openai
import os

from langchain_openai import ChatOpenAI

model = ChatOpenAI(
    base_url="{base}",
    api_key=os.environ["GPT_BUILDER_API_KEY"],
    model="{model}",
    stream_usage=True,
)
print(model.invoke("{question}").content)
"""
# For a project whose objective has no sample question.
QUESTION = "What can you help me with?"


_SIGNS = str.maketrans({"'": "’", '"': "”", "\\": "/"})


def _written(question: str) -> str:
    """A question as it may stand between the quotes of all programs: one line, at most 120 signs."""
    line = "".join(sign for sign in " ".join(question.split()).translate(_SIGNS) if sign.isprintable())
    return line if len(line) <= 120 else line[:119].rstrip() + "…"


@dataclass(frozen=True)
class Snippet:
    """A program: its tab's name, its language for the colours, and its text."""

    key: str
    title: str
    language: str
    text: str


def snippets(base_url: str, model_id: str, question: str = "") -> list[Snippet]:
    """The programs for one model. Base URL and id are ours: they hold nothing that a shell would read; the
    question's quotes are replaced by typographic ones."""
    values = {"base": base_url, "model": model_id, "question": _written(question) or QUESTION}
    return [
        Snippet("curl", "curl", "bash", _CURL.format(**values)),
        Snippet("python", "Python", "python", _PYTHON.format(**values)),
        Snippet("javascript", "JavaScript", "javascript", _JAVASCRIPT.format(**values)),
        Snippet("langchain", "LangChain (Python)", "python", _LANGCHAIN.format(**values)),
    ]
