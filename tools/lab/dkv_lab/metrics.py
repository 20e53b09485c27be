"""LongBench's metrics: what a written answer is worth, 0 … 1 (Bai et al. 2023, THUDM/LongBench, metrics.py and eval.py).

Own code after those definitions; one difference: of the classes found in an answer, every one that is a
part of the right one is dropped, where the release skips the neighbour of one it dropped.
"""

from __future__ import annotations

import functools
import re
import string
from collections import Counter
from collections.abc import Callable

from dkv.errors import UserError

_CHINESE_PUNCTUATION = "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､、〃》「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏."
_FIRST_LINE_COUNTS = ("trec", "triviaqa", "samsum", "lsht")


class MetricError(UserError):
    """A library that a metric needs is not there."""


def score(task: str, prediction: str, answers: list[str], classes: list[str] | None = None) -> float:
    """The best over the right answers."""
    if task in _FIRST_LINE_COUNTS:
        prediction = prediction.lstrip("\n").split("\n")[0]
    metric = METRICS[task]
    if metric is class_found:
        return max(class_found(prediction, answer, classes or []) for answer in answers)
    return max(metric(prediction, answer) for answer in answers)


def token_f1(prediction: list[str], answer: list[str]) -> float:
    same = sum((Counter(prediction) & Counter(answer)).values())
    if same == 0:
        return 0.0
    precision, recall = same / len(prediction), same / len(answer)
    return 2 * precision * recall / (precision + recall)


def english_f1(prediction: str, answer: str) -> float:
    return token_f1(_english_words(prediction), _english_words(answer))


def chinese_f1(prediction: str, answer: str) -> float:
    return token_f1(_chinese_words(prediction), _chinese_words(answer))


def rouge_l(prediction: str, answer: str) -> float:
    """ROUGE-L's F of the package `rouge`, which the release uses: sentences end at full stops."""
    try:
        from rouge import Rouge
    except ImportError:
        raise MetricError("summaries are scored with the Python package rouge: pip install rouge") from None
    try:
        return Rouge(metrics=["rouge-l"]).get_scores([prediction], [answer], avg=True)["rouge-l"]["f"]
    except (ValueError, RecursionError):  # One of the two is empty, or absurdly long.
        return 0.0


def chinese_rouge_l(prediction: str, answer: str) -> float:
    cut = _chinese_cutter()
    return rouge_l(" ".join(cut(prediction)), " ".join(cut(answer)))


def class_found(prediction: str, answer: str, classes: list[str]) -> float:
    """One share of as many as were named."""
    named = [name for name in classes if name in prediction]
    named = [name for name in named if name == answer or name not in answer]
    return 1 / len(named) if answer in named else 0.0


def numbers_right(prediction: str, answer: str) -> float:
    """The share of the numbers in the text that are the one in the answer."""
    right = re.search(r"\d+", answer)
    numbers = re.findall(r"\d+", prediction)
    return sum(number == right.group() for number in numbers) / len(numbers) if numbers and right else 0.0


def code_similarity(prediction: str, answer: str) -> float:
    """Of the first line that is neither comment nor fence."""
    try:
        from rapidfuzz import fuzz
    except ImportError:
        raise MetricError("code is scored with the Python package rapidfuzz: pip install rapidfuzz") from None
    lines = prediction.lstrip("\n").split("\n")
    line = next((one for one in lines if not any(mark in one for mark in ("`", "#", "//"))), "")
    return round(fuzz.ratio(line, answer)) / 100


def _english_words(text: str) -> list[str]:
    bare = "".join(c for c in text.lower() if c not in set(string.punctuation))
    return re.sub(r"\b(a|an|the)\b", " ", bare).split()


def _chinese_words(text: str) -> list[str]:
    marks = set(string.punctuation + _CHINESE_PUNCTUATION)
    words = ("".join("".join(c for c in word.lower() if c not in marks).split()) for word in _chinese_cutter()(text))
    return [word for word in words if word]


@functools.cache
def _chinese_cutter() -> Callable[[str], list[str]]:
    try:
        import jieba
    except ImportError:
        raise MetricError("Chinese answers are cut into words by the Python package jieba: pip install jieba") from None
    jieba.setLogLevel(60)
    return lambda text: list(jieba.cut(text, cut_all=False))


METRICS: dict[str, Callable] = {
    **dict.fromkeys(("narrativeqa", "qasper", "multifieldqa_en", "hotpotqa", "2wikimqa", "musique", "triviaqa"), english_f1),
    **dict.fromkeys(("gov_report", "qmsum", "multi_news", "samsum"), rouge_l),
    **dict.fromkeys(("trec", "lsht"), class_found),
    **dict.fromkeys(("passage_count", "passage_retrieval_en", "passage_retrieval_zh"), numbers_right),
    **dict.fromkeys(("lcc", "repobench-p"), code_similarity),
    **dict.fromkeys(("dureader", "vcsum"), chinese_rouge_l),
    "multifieldqa_zh": chinese_f1,
}
