"""What is to be known about Anthropic's API that changes with its releases: names, models, errors. Data, no code."""

from __future__ import annotations

import re

from pickaxe.models._errors import Failure
from pickaxe.models._response import Stop

PROVIDER_TOOLS = {
    "web_search": "web_search_20260318",
    "web_fetch": "web_fetch_20260318",
    "code_execution": "code_execution_20260521",
    "tool_search": "tool_search_tool_bm25_20251119",
}
"""The portable names, and the types that they stand for."""

PORTABLE = {
    "bash_code_execution": "code_execution",
    "text_editor_code_execution": "code_execution",
    "tool_search_tool_bm25": "tool_search",
    "tool_search_tool_regex": "tool_search",
}
"""What a provider tool is called in an answer, where that is not its portable name."""

OWN_TYPE = re.compile(r"[a-z0-9_]+_20\d{6}")
TYPE_NAMES = {
    "text_editor_20250728": "str_replace_based_edit_tool",
    "text_editor_20250429": "str_replace_based_edit_tool",
}
"""The name that goes with a type, where it is not the type without its date."""

BUDGETED = re.compile(r"claude-(2|3|instant|(opus|sonnet)-4-(0|1|5|20)|haiku-4-5)")
"""Models that think by a budget of tokens; all others judge for themselves how much (`adaptive`)."""
UNTHINKING = re.compile(r"claude-(2|instant|3-(haiku|sonnet|opus|5))")
UNSTRUCTURED = re.compile(r"claude-(2|3|instant|(opus|sonnet)-4-(0|20))")
"""Models whose answers cannot be held to a JSON schema by the provider."""

BUDGETS = {"minimal": 1_024, "low": 2_048, "medium": 8_192, "high": 16_384, "max": 32_000}
EFFORTS = {"minimal": "low", "low": "low", "medium": "medium", "high": "high", "max": "max"}

STOPS = {
    "end_turn": Stop.END, "tool_use": Stop.TOOL_CALLS, "max_tokens": Stop.MAX_TOKENS,
    "stop_sequence": Stop.STOP_SEQUENCE, "refusal": Stop.REFUSAL, "pause_turn": Stop.PAUSE,
    "model_context_window_exceeded": Stop.CONTEXT_WINDOW,
}  # fmt: skip

KINDS = {
    "invalid_request_error": Failure.BAD_REQUEST, "authentication_error": Failure.AUTHENTICATION,
    "billing_error": Failure.QUOTA, "permission_error": Failure.PERMISSION, "not_found_error": Failure.NOT_FOUND,
    "request_too_large": Failure.TOO_LARGE, "rate_limit_error": Failure.RATE_LIMITED, "timeout_error": Failure.TIMEOUT,
    "api_error": Failure.SERVER, "overloaded_error": Failure.OVERLOADED,
}  # fmt: skip
"""Errors by their `type`."""

CODES = {
    "enforced_spend_limit_reached": Failure.QUOTA, "contract_spend_limit_reached": Failure.QUOTA,
    "linked_organization_spend_limit_reached": Failure.QUOTA, "linked_organization_billing_unavailable": Failure.QUOTA,
    "organization_on_hold": Failure.PERMISSION, "request_body_too_large_after_decoding": Failure.TOO_LARGE,
}  # fmt: skip
"""Errors by their `details.error_code`, which says more than their type."""

PHRASES = (
    (re.compile(r"prompt is too long|exceed(s)? (the )?context (limit|window)|input length and `max_tokens`", re.I),
     Failure.TOO_LARGE),
    (re.compile(r"credit balance is too low", re.I), Failure.QUOTA),
)  # fmt: skip
"""What the API tells apart by words alone."""
