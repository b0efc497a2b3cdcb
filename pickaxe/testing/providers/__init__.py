"""A provider of models on this machine: a real HTTP server that says what its script says.

It speaks Anthropic Messages, the OpenAI Chat dialect and OpenAI Responses, whichever it is asked in, so a test drives
the real SDKs over a real connection.

```python
from pickaxe.testing import FakeProvider, Reply, ErrorReply

with FakeProvider("Hello", ErrorReply(429, retry_after=2), Reply("Hel", cut=40)) as provider:
    ...                                         # give a client `base_url=provider.url`
    assert provider.requests[0].json["model"] == "claude-sonnet-5-5"
```
"""

from pickaxe.testing.providers._script import ErrorReply, RawReply, Received, Reply
from pickaxe.testing.providers._server import FakeProvider

__all__ = ["ErrorReply", "FakeProvider", "RawReply", "Received", "Reply"]
