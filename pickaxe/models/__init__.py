"""Models: what they are asked and what they answer, whoever provides them.

The only room that imports provider SDKs, each when it is first used.
"""

from pickaxe.models._anthropic import Anthropic
from pickaxe.models._chat import OpenAIChat
from pickaxe.models._dialects import ChatDialect
from pickaxe.models._errors import RETRYABLE, Failure, FailureRecord, ModelError
from pickaxe.models._messages import (
    AssistantMessage,
    Citation,
    Content,
    File,
    Message,
    Native,
    Part,
    ProviderToolCall,
    Refusal,
    Text,
    Thinking,
    ToolCall,
    ToolMessage,
    ToolResult,
    UserMessage,
)
from pickaxe.models._names import provider_of, register_provider
from pickaxe.models._provider import Provider
from pickaxe.models._request import (
    ModelRequest,
    NamedTool,
    OutputSchema,
    ProviderTool,
    RequestOptions,
    ToolDefinition,
)
from pickaxe.models._response import (
    Cited,
    Finished,
    ModelEvent,
    ModelResponse,
    ProviderToolEnded,
    ProviderToolStarted,
    RefusalDelta,
    Stop,
    TextDelta,
    ThinkingDelta,
    ToolArgumentsDelta,
    ToolCallStarted,
    Usage,
)
from pickaxe.models._responses import OpenAIResponses

__all__ = [
    "RETRYABLE",
    "Anthropic",
    "AssistantMessage",
    "ChatDialect",
    "Citation",
    "Cited",
    "Content",
    "Failure",
    "FailureRecord",
    "File",
    "Finished",
    "Message",
    "ModelError",
    "ModelEvent",
    "ModelRequest",
    "ModelResponse",
    "NamedTool",
    "Native",
    "OpenAIChat",
    "OpenAIResponses",
    "OutputSchema",
    "Part",
    "Provider",
    "ProviderTool",
    "ProviderToolCall",
    "ProviderToolEnded",
    "ProviderToolStarted",
    "Refusal",
    "RefusalDelta",
    "RequestOptions",
    "Stop",
    "Text",
    "TextDelta",
    "Thinking",
    "ThinkingDelta",
    "ToolArgumentsDelta",
    "ToolCall",
    "ToolCallStarted",
    "ToolDefinition",
    "ToolMessage",
    "ToolResult",
    "Usage",
    "UserMessage",
    "provider_of",
    "register_provider",
]
