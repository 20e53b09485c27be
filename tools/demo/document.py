"""The demo's default prompt: a real text, one sentence put into its middle, and a question about it."""

from __future__ import annotations

import dataclasses
import pathlib

LICENCE = pathlib.Path("/usr/share/common-licenses/GPL-2")
NOTE = "Note for the auditors: the keeper of the archive room in Lisbon is Marta Quintela."
QUESTION = "Who is the keeper of the archive room in Lisbon?"
EXPECTED = "Marta Quintela"


@dataclasses.dataclass(frozen=True)
class Document:
    """What the model reads: `text`, an empty line, `question` (may be empty)."""

    name: str
    text: str
    question: str
    expected: str | None  # part of a right answer, or None when it is not known


def default_document() -> Document:
    """The GNU General Public License, version 2 (about 4,000 tokens of SmolLM2's), with NOTE put
    between two of its paragraphs, 45 % of the way through."""
    text = LICENCE.read_text(encoding="utf-8")
    at = text.index("\n\n", len(text) * 45 // 100)
    return Document(
        name=f"{LICENCE} with one sentence added",
        text=f"{text[:at]}\n\n{NOTE}{text[at:]}",
        question=QUESTION,
        expected=EXPECTED,
    )


def user_document(path: pathlib.Path) -> Document:
    """The user's own text; its last paragraph is the question."""
    text = path.read_text(encoding="utf-8").strip()
    body, _, question = text.rpartition("\n\n")
    return Document(name=str(path), text=body or question, question=question if body else "", expected=None)


def as_chat(tokenizer, document: Document) -> str:
    """The document as one message of a user, ready for the answer."""
    content = "\n\n".join(part for part in (document.text, document.question) if part)
    return tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
