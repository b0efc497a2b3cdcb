"""A stand-in for a language model: plans, extracts and compares by rules, from the text it is given.

Deterministic, so a run can be repeated; it needs no key. `pace` is how many seconds an answer takes, as a model's
would. Put a client of a real model with the same three methods in its place.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass

from integrations.clause_rules import TOPICS, Topic


@dataclass(frozen=True)
class Plan:
    """What to look into, and the words to find it by."""

    topics: list[str]
    terms: list[str]


@dataclass(frozen=True)
class Finding:
    """What a document says on a topic. `quote` is its own wording, empty when it says nothing."""

    document: str
    topic: str
    answer: str
    quote: str


@dataclass(frozen=True)
class Comparison:
    """Per topic and answer, the documents that give it; and the documents that suit on every topic."""

    answers: dict[str, dict[str, list[str]]]
    wanted: dict[str, list[str]]
    suitable: list[str]


class ScriptedModel:
    """See the module."""

    def __init__(self, pace: float = 0.0) -> None:
        self.pace = pace

    def plan(self, question: str) -> Plan:
        """The topics of a question; all of them if it names none."""
        self._think()
        topics = [topic for topic in TOPICS if topic.asked.search(question)] or TOPICS
        return Plan([topic.name for topic in topics], [term for topic in topics for term in topic.terms])

    def extract(self, document: str, sentences: list[str], topics: list[str]) -> Iterator[Finding]:
        """What a document says on each topic, one by one."""
        for topic in _topics(topics):
            self._think(1 / len(topics))
            yield _find(document, sentences, topic)

    def compare(self, findings: list[Finding]) -> Comparison:
        """All findings side by side."""
        self._think()
        answers: dict[str, dict[str, list[str]]] = {}
        for finding in findings:
            answers.setdefault(finding.topic, {}).setdefault(finding.answer, []).append(finding.document)
        topics = _topics(list(answers))
        suits = [{f.document for f in findings if f.topic == t.name and f.answer in t.wanted} for t in topics]
        suitable = sorted(set.intersection(*suits)) if suits else []
        return Comparison(answers, {topic.name: sorted(topic.wanted) for topic in topics}, suitable)

    def _think(self, share: float = 1.0) -> None:
        time.sleep(self.pace * share)


def open_model() -> ScriptedModel:
    """A model that takes `MODEL_PACE` seconds to answer, by default one."""
    return ScriptedModel(float(os.environ.get("MODEL_PACE", "1")))


def _topics(names: list[str]) -> list[Topic]:
    known = {topic.name: topic for topic in TOPICS}
    return [known[name] for name in names]


def _find(document: str, sentences: list[str], topic: Topic) -> Finding:
    for answer, wording in topic.answers:
        for sentence in sentences:
            if wording.search(sentence):
                return Finding(document, topic.name, answer, sentence)
    return Finding(document, topic.name, topic.otherwise, "")
