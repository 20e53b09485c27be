"""Phrases of words.txt are refused in pages and in the comments of C++ headers."""
import re

# "there is no X" is plain, and so is "is no longer": only "X is no Y" takes two readings.
PLAIN_BEFORE = r"(?<!there )"
PLAIN_BEHIND = r"(?!\s+(?:longer|more|less|better|worse|larger|smaller|later|faster|slower|one|such)\b)"
PLACES = ("README.md", "docs/*.md", "docs/adr/*.md", "docs/eval/*.md", "tools/*/README.md")
HEADERS = ("cli", "kernels", "protocol", "sidecar", "tests", "tools")


def lines_of(path):
    lines = (line.split("#")[0].strip() for line in path.read_text().splitlines())
    return [line for line in lines if line]


def read_phrases(path):
    """[(compiled phrase, what to write)] of a file in the form of words.txt."""
    pairs = [line.partition(":") for line in lines_of(path)]
    return [(re.compile(PLAIN_BEFORE + r"\b" + r"\s+".join(phrase.split()) + r"\b" + PLAIN_BEHIND, re.IGNORECASE),
             advice.strip()) for phrase, _, advice in pairs]


def blank(text):
    """`text` as white space of the same lines."""
    return re.sub(r"[^\n]", " ", text)


def prose_of_page(text):
    """A page without what is quoted from programs: code, and words in backquotes."""
    text = re.sub(r"^```.*?^```", lambda found: blank(found[0]), text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`", lambda found: "`" * len(found[0]), text)


def prose_of_header(text):
    """The comments of a header, without their marks."""
    kept = blank(text)
    for found in re.finditer(r"//[^\n]*|/\*.*?\*/", text, re.DOTALL):
        words = re.sub(r"^\s*(?:///?<?|/\*\*?|\*/?)", lambda mark: blank(mark[0]), found[0], flags=re.MULTILINE)
        kept = kept[:found.start()] + words + kept[found.end():]
    return kept


def check_prose(name, prose, phrases):
    for phrase, advice in phrases:
        for found in phrase.finditer(prose):
            words = " ".join(found[0].split())
            yield f"{name}:{prose.count(chr(10), 0, found.start()) + 1}: '{words}': {advice}"


def check_words(root):
    """Errors of all pages and headers under `root`."""
    phrases = read_phrases(root / "tools/tidy/words.txt")
    pages = {path for place in PLACES for path in root.glob(place)}
    headers = {path for folder in HEADERS for path in (root / folder).rglob("*.h")}
    for path in sorted(pages | headers):
        prose = prose_of_header(path.read_text()) if path in headers else prose_of_page(path.read_text())
        yield from check_prose(str(path.relative_to(root)), prose, phrases)
