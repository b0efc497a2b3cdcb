"""What to look for in a licence: per topic, answers in order of precedence and the wording that gives them away."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Topic:
    """Something a question may be about.

    `asked` recognises it in a question, `terms` find documents that speak of it. The first of `answers` with a
    sentence that matches is the finding, else `otherwise`. `wanted` are the answers that suit somebody who wants
    to do as they like.
    """

    name: str
    asked: re.Pattern[str]
    terms: list[str]
    answers: list[tuple[str, re.Pattern[str]]]
    otherwise: str
    wanted: frozenset[str]


def _topic(
    name: str, asked: str, terms: str, answers: list[tuple[str, str]], otherwise: str, wanted: set[str]
) -> Topic:
    compiled = [(answer, re.compile(pattern, re.IGNORECASE)) for answer, pattern in answers]
    return Topic(name, re.compile(asked, re.IGNORECASE), terms.split(), compiled, otherwise, frozenset(wanted))


TOPICS = [
    _topic(
        "patents",
        r"\bpatent",
        "patent",
        [
            ("excluded", r"no trademark or patent rights .* are waived"),
            ("granted", r"grants .{0,250}(patent license|licen[cs]e, under patent claims|rights to any patents)"),
            ("granted", r"includes the .{0,60}patent license to make, have made, use"),
            ("granted", r"under Patent Claims of such Contributor to make, use, sell"),
            ("as GPL-3.0", r"incorporates the terms and conditions of version 3 of the GNU General Public"),
            ("implied", r"patent license would not permit royalty-free redistribution"),
        ],
        "silent",
        {"granted"},
    ),
    _topic(
        "copyleft",
        r"copyleft|closed|proprietary|share|derivative|publish my",
        "source derivative modified",
        [
            ("library", r"work that uses the Library.{0,400}distribute that work under terms of your choice"),
            ("library", r"convey a Combined Work under terms of your choice"),
            ("file", r"distribution of Covered Software in Source Code Form.{0,200}must be under the terms of this"),
            ("file", r"the Program must also be made available as Source Code"),
            ("whole work", r"license the entire work, as a whole, under this License"),
            (
                "whole work",
                r"to be licensed as a whole at no charge to all third parties",
            ),
            ("whole work", r"Distribution or Communication will be done under the terms of this Licence"),
            ("whole work", r"shall be licensed under this Open Software License"),
            ("modified versions", r"distribute your Modified Version as Source"),
        ],
        "none",
        {"none"},
    ),
    _topic(
        "notices",
        r"notice|attribution|credit|mention",
        "notice copyright",
        [
            ("keep", r"not remove or alter .{0,60}notices"),
            ("keep", r"(must retain|keep intact|duplicate)\b.{0,200}notices?"),
            ("keep", r"copyright notices?.{0,250}(shall be|must be|appear in)"),
            ("keep", r"include the copyright notice"),
            ("keep", r"notice may not be removed or altered"),
        ],
        "nothing",
        {"keep", "nothing"},
    ),
    _topic(
        "network use",
        r"network|server|service|hosted|saas|cloud",
        "network remote electronic",
        [
            ("publish source", r"interacting with it remotely through a computer network.{0,300}Corresponding Source"),
            ("publish source", r"External Deployment.{0,300}(distribution|Derivative)"),
            ("publish source", r"providing access to its essential functionalities"),
        ],
        "free",
        {"free"},
    ),
]
