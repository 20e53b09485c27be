"""Facts hidden in real text, and the question at the end.

Three families that share no wording and no question: profiles are made from the first, their
parameters are chosen on the second, and the third is for reports alone. As in RULER the prompt ends with the answer's first words, so that the answer is
the fact alone. Its first token comes from the prefill, under every policy the same; the others are the test.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass

from .sources import Reader


PROSE = ("licence", "reference", "manual")


@dataclass(frozen=True)
class Fact:
    """What is hidden, what is asked, and what must come out."""

    statements: list[str]
    question: str
    lead: str
    answer: str
    listing: Callable[[int], str] | None = None  # A text of so many words that is itself asked about, in place of prose.


FORCED = 24  # Tokens of the full cache's own text that are forced, where no answer is given.


@dataclass(frozen=True)
class Ask:
    """A question that comes after a prompt was compressed."""

    question: tuple[int, ...]
    answer: tuple[int, ...]  # Empty: what the full cache answers.
    template: str
    depth: float | None = None


@dataclass(frozen=True)
class Row:
    """One prompt of a task, as tokens."""

    key: str  # Unique within a run.
    task: str
    template: str
    tokens: list[int]
    answer: list[int]  # Forced after the prompt; empty: the full cache's own continuation.
    continuation: tuple[int, ...] = ()  # Text rows: what really came next.
    facts: tuple[tuple[int, int], ...] = ()  # Where the hidden statements are: [begin, end) in tokens.
    depth: float | None = None  # Where they were meant to be, 0 … 1: the mean.
    writes: int = 0  # Tokens to be written greedily and judged as a text; 0: the answer is forced.
    judge: Callable[[str], float] | None = None  # Of what was written, 0 … 1.
    source: dict | None = None  # Of a row that is judged: what others' formats say of it.
    asks: tuple[Ask, ...] = ()  # Asked in this order, each before its answer. Empty: the question is in the prompt.

    @property
    def keys(self) -> list[str]:
        """Of its lines in the results: one for each question."""
        return [f"{self.key}-q{index}" for index in range(len(self.asks))] or [self.key]


def _pick(rng: random.Random, words: str) -> str:
    return rng.choice(words.split())


PLACES = "Alder Birch Cedar Falcon Granite Harbor Juniper Lantern Maple Orchid Quarry Raven Sparrow Thistle Walnut"
_COLOURS = "turquoise maroon beige crimson lavender olive indigo magenta scarlet amber"
_FIRST = "Amelia Bertram Cordelia Dmitri Eleanor Fergus Gwendolyn Horatio Imogen Jasper Katarina Leopold Marguerite"
_LAST = "Ashdown Blackwood Castellan Drummond Evershed Fairbanks Grimaldi Hathaway Lindqvist Montrose Pemberton"
_DISHES = (
    "roasted pheasant with plums|smoked trout and barley|lentil stew with saffron|pumpkin dumplings in broth|"
    "braised rabbit with mustard|chestnut soup with thyme|grilled octopus and lemons|mushroom pie with leeks|"
    "baked apples stuffed with walnuts|venison sausages with cabbage"
)
_CITIES = "Montevideo Ljubljana Samarkand Reykjavik Valparaiso Tashkent Antananarivo Thessaloniki Vladivostok Marrakesh"
_WORDS = "anchor basil comet dagger ember fossil goblet hazel ivory jigsaw kettle marble nectar opal pebble quill"


def _access_code(rng) -> Fact:
    place, code = _pick(rng, PLACES), rng.randint(10000, 99999)
    return Fact(
        [f"The access code for the {place} archive is {code}."],
        f"What is the access code for the {place} archive?",
        " The access code is",
        f" {code}",
    )


def _bicycle(rng) -> Fact:
    owner = _pick(rng, "Peter Susan Walter Nadia Oscar Linda")
    colours = f"{_pick(rng, _COLOURS)} and {_pick(rng, _COLOURS)}"
    return Fact(
        [f"The colours of {owner}'s bicycle: {colours}."],
        f"Which colours has {owner}'s bicycle?",
        f" The colours of {owner}'s bicycle:",
        f" {colours}",
    )


def _meeting(rng) -> Fact:
    guild = _pick(rng, "carpenters' printers' weavers' bakers' masons'")
    day = _pick(rng, "Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
    time = f"{rng.randint(8, 19):02d}:{rng.randrange(0, 60, 5):02d}"
    return Fact(
        [f"The {guild} guild meets on {day} at {time}."],
        f"When does the {guild} guild meet?",
        f" The {guild} guild meets on",
        f" {day} at {time}",
    )


def _password(rng) -> Fact:
    words = "-".join(rng.sample(_WORDS.split(), 3))
    return Fact(
        [f"The secret phrase of the cellar is {words}."],
        "What must be whispered to enter the cellar?",
        " The secret phrase of the cellar is",
        f" {words}",
    )


def _telephone(rng) -> Fact:
    line = rng.randint(100_000_000, 999_999_999)
    who = _pick(rng, "pilgrims sailors hikers shepherds drivers")
    return Fact(
        [f"Stranded {who} may ring {line} at any hour."],
        f"Which telephone line helps stranded {who}?",
        f" Stranded {who} may ring",
        f" {line}",
    )


def _ticket(rng) -> Fact:
    owner = _pick(rng, "Tobias Ursula Victor Wanda Xavier Yvonne")
    ticket = "".join(rng.choice("ABCDEFGHKLMNPRSTUVWXYZ23456789") for _ in range(7))
    return Fact(
        [f"Cloakroom ticket, {owner}: {ticket}"],
        f"With which ticket does {owner} get the coat back?",
        f" Cloakroom ticket, {owner}:",
        f" {ticket}",
    )


def _balance(rng) -> Fact:
    ledger = _pick(rng, "harbour orphanage brewery theatre monastery")
    crowns = rng.randint(10_000_000, 99_999_999)
    return Fact(
        [f"So the books of the {ledger} closed with {crowns} crowns."],
        f"How much money was in the {ledger}'s books?",
        f" The books of the {ledger} closed with",
        f" {crowns}",
    )


def _plate(rng) -> Fact:
    van = _pick(rng, "florist plumber butcher locksmith chimney-sweep")
    letters = "".join(rng.choice("ABCDEFGHKLMNPRSTVWXZ") for _ in range(3))
    plate = f"{letters}-{rng.randint(10_000, 99_999)}"
    return Fact(
        [f"The {van}'s van, plate {plate}, was seen twice."],
        f"What plate has the {van}'s van?",
        f" The {van}'s van, plate",
        f" {plate}",
    )


def _horse(rng) -> Fact:
    stable = _pick(rng, "northern southern royal abandoned upper")
    horse = f"{_pick(rng, 'Silver Midnight Scarlet Thunder Velvet Copper')} {_pick(rng, 'Comet Willow Dancer Feather Whisper Monsoon')}"
    return Fact(
        [f"Fastest in the {stable} stable is a mare called {horse}."],
        f"Which mare in the {stable} stable wins the races?",
        f" Fastest in the {stable} stable is a mare called",
        f" {horse}",
    )


def _garden(rng) -> Fact:
    gardener = _pick(rng, "Agatha Bruno Clemens Dorothea Emil")
    plants = rng.sample("tulips ferns radishes nettles poppies cucumbers lilies parsley thistles".split(), 3)
    return Fact(
        [f"Behind the house {gardener} grows {plants[0]}, {plants[1]} and {plants[2]}."],
        f"What has {gardener} planted?",
        f" Behind the house {gardener} grows",
        f" {plants[0]}, {plants[1]} and {plants[2]}",
    )


def _serial_number(rng) -> Fact:
    thing = _pick(rng, "turbine telescope gramophone submarine harpsichord locomotive seismograph")
    number = rng.randint(1_000_000, 9_999_999)
    return Fact(
        [f"The number engraved on the {thing} is {number}."],
        f"Which number did they engrave on the {thing}?",
        f" The number engraved on the {thing} is",
        f" {number}",
    )


def _dish(rng) -> Fact:
    feast = _pick(rng, "harvest wedding midsummer coronation retirement")
    dish = rng.choice(_DISHES.split("|"))
    return Fact(
        [f"At the {feast} feast everybody ate {dish}."],
        f"What was the food at the {feast} feast?",
        f" At the {feast} feast everybody ate",
        f" {dish}",
    )


def _person(rng) -> Fact:
    building = _pick(rng, "lighthouse aqueduct observatory cathedral drawbridge")
    person = f"{_pick(rng, _FIRST)} {_pick(rng, _LAST)}"
    return Fact(
        [f"The plans of the {building} are by {person}, an engineer."],
        f"Who drew up the plans of the {building}?",
        f" The plans of the {building} are by",
        f" {person}",
    )


def _city(rng) -> Fact:
    cargo = _pick(rng, "pianos microscopes saddles carpets violins")
    city = _pick(rng, _CITIES)
    return Fact(
        [f"In spring the ship with the {cargo} sailed to {city}."],
        f"What was the destination of the {cargo}?",
        f" In spring the ship with the {cargo} sailed to",
        f" {city}",
    )


def _registry_key(rng) -> Fact:
    key = f"{_pick(rng, _WORDS)}.{_pick(rng, _WORDS)}"
    value = "".join(rng.choice("abcdef0123456789") for _ in range(6))
    return Fact([f'"{key}": "{value}",'], f'What is the value of "{key}"?', f' "{key}": "', value)


FAMILIES: dict[str, dict[str, Callable[[random.Random], Fact]]] = {
    "calibration": {
        "access code": _access_code,
        "bicycle": _bicycle,
        "assembly": _meeting,
        "phrase": _password,
        "telephone": _telephone,
        "ticket": _ticket,
    },
    "tuning": {
        "balance": _balance,
        "plate": _plate,
        "mare": _horse,
        "garden": _garden,
    },
    "report": {
        "7-digit number": _serial_number,
        "dish": _dish,
        "person": _person,
        "city": _city,
        "key-value": _registry_key,
    },
}


def in_turn(columns: list[list[Row]]) -> list[Row]:
    """Tasks and lengths take turns, so that a run that is stopped has some of each, and its beginning shows its pace."""
    return [row for turn in itertools.zip_longest(*columns) for row in turn if row is not None]


def needle_rows(
    tokenizer, family: str, part: str, count: int, length: int, seed: int, task: str = "needle", makers: dict | None = None
) -> list[Row]:
    """`count` prompts of `length` tokens, the family's templates (or `makers`) in turn, depths spread evenly."""
    templates = list((makers or FAMILIES[family]).items())
    reader = Reader(part, seed)
    rows = []
    for index in range(count):
        rng = random.Random(f"{family}/{part}/{length}/{seed}/{index}")
        name, make = templates[index % len(templates)]
        rows.append(_needle_row(tokenizer, make(rng), reader, rng, length, f"{task}-{family}-{length}-{seed}-{index}", task, name))
    return rows


def text_rows(tokenizer, part: str, count: int, length: int, seed: int, continuation: int = 24, task: str = "text") -> list[Row]:
    """`count` excerpts of `length` tokens of running text and what came next."""
    reader = Reader(part, seed)
    rows = []
    for index in range(count):
        document, text = reader.excerpt(8 * (length + continuation))
        tokens = start(tokenizer) + encode(tokenizer, text)
        key = f"{task}-{part}-{length}-{seed}-{index}"
        rows.append(Row(key, task, document.kind, tokens[:length], [], tuple(tokens[length : length + continuation])))
    return rows


def grid_rows(tokenizer, family: str, part: str, lengths: list[int], depths: list[float], repeats: int, seed: int) -> list[Row]:
    """A needle for every length and depth, `repeats` times, the templates in turn: the paper's heat map."""
    templates = list(FAMILIES[family].items())
    reader = Reader(part, seed)
    rows = []
    for repeat in range(repeats):
        for length in lengths:
            for depth in depths:
                key = f"grid-{family}-{length}-{depth:g}-{seed}-{repeat}"
                rng = random.Random(key)
                name, make = templates[len(rows) % len(templates)]
                rows.append(_needle_row(tokenizer, make(rng), reader, rng, length, key, "grid", name, [depth]))
    return rows


def _needle_row(
    tokenizer, fact: Fact, reader: Reader, rng, length: int, key: str, task: str, template: str, depths: list[float] | None = None
) -> Row:
    question = question_of(tokenizer, fact)
    tokens, spans, depths = context_of(tokenizer, [fact], reader, rng, length - len(question), template, depths)
    answer = encode(tokenizer, fact.answer)
    return Row(key, task, template, tokens + question, answer, facts=tuple(spans), depth=mean(depths))


def question_of(tokenizer, fact: Fact) -> list[int]:
    return asked(tokenizer, fact.question, fact.lead)


def asked(tokenizer, question: str, lead: str = "") -> list[int]:
    """What is put behind a text. lead: the answer's first words."""
    return encode(tokenizer, f"\n\nQuestion: {question}\nAnswer:{lead}")


def mean(depths: list[float]) -> float | None:
    return sum(depths) / len(depths) if depths else None


def context_of(
    tokenizer, facts: list[Fact], reader: Reader, rng, length: int, template: str, depths: list[float] | None = None
) -> tuple[list[int], list[tuple[int, int]], list[float]]:
    """hidden() of the facts' statements; of the one fact with a listing, the longest of at most `length` tokens."""
    listing = next((fact.listing for fact in facts if fact.listing), None)
    if listing is None:
        statements = [statement for fact in facts for statement in fact.statements]
        return hidden(tokenizer, statements, reader, rng, length, template, depths)
    if len(facts) > 1:
        raise ValueError(f"{template}: a fact that is a whole listing is asked alone, and there are {len(facts)}")

    first = start(tokenizer)

    @functools.cache
    def tokens(words: int) -> list[int]:
        return first + encode(tokenizer, listing(words))

    words = bisect.bisect_right(range(1, length), length, key=lambda words: len(tokens(words)))
    if words == 0:
        raise ValueError(f"{length} tokens are too few for {template}")
    return tokens(words), [], []


def hidden(
    tokenizer, texts: list[str], reader: Reader, rng, length: int, template: str, depths: list[float] | None = None
) -> tuple[list[int], list[tuple[int, int]], list[float]]:
    """`length` tokens of prose with statements hidden in it; where each is: [begin, end), and the depth, 0 … 1."""
    statements = [encode(tokenizer, f" {statement}\n") for statement in texts]
    tokens = start(tokenizer)
    room = length - len(tokens) - sum(map(len, statements))
    if room < 0:
        raise ValueError(f"{length} tokens are too few for {template}")
    hay = encode(tokenizer, reader.excerpt(8 * room + 200, PROSE)[1])[:room]
    breaks = _breaks(tokenizer, hay)
    depths = depths or sorted(rng.uniform(0.05, 0.95) for _ in statements)
    begin, spans = 0, []
    for depth, statement in zip(depths, statements):
        at = max(begin, min(breaks, key=lambda b: abs(b - depth * room)))
        tokens += hay[begin:at]
        spans.append((len(tokens), len(tokens) + len(statement)))
        tokens += statement
        begin = at
    return tokens + hay[begin:], spans, depths


def _breaks(tokenizer, tokens: list[int]) -> list[int]:
    """Where a line ends; the start and the end if there is none."""
    return [i + 1 for i, piece in enumerate(tokenizer.batch_decode([[t] for t in tokens])) if "\n" in piece] or [0, len(tokens)]


def start(tokenizer) -> list[int]:
    """What the tokenizer puts before a text: Gemma is lost without its <bos>."""
    plain, whole = encode(tokenizer, "x"), tokenizer("x")["input_ids"]
    return whole[: -len(plain)] if whole[-len(plain) :] == plain else []


def encode(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]
