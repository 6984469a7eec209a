"""A conversation with a language model that uses the tools of MCP servers: ``async for event in agent.say("…")``.

Experimental: a minor version can change it. See Stability in the documentation.

Built on `millstream.client`. A model is any implementation of `model.Model`. The included one supports
OpenAI-compatible APIs and Azure OpenAI (``pip install 'millstream[agent]'``).
"""

from millstream.agent._agent import Agent
from millstream.agent._configuration import Approval, Configuration, ConnectedServer, ServerConfig
from millstream.agent._events import (
    AgentError,
    AgentRun,
    AnswerEnd,
    AnswerQueue,
    AssistantMessage,
    ConfigurationError,
    ContextError,
    ContextWindowExceeded,
    Event,
    Limits,
    ModelAuthError,
    ModelError,
    ModelRateLimited,
    ModelRefused,
    ModelRetry,
    ModelServerError,
    ModelUnreachable,
    ResultsShortened,
    RoundStart,
    SamplingResult,
    TextDelta,
    ToolEnd,
    ToolProgress,
    ToolStart,
    Transcript,
    UserMessage,
)
from millstream.agent._model import LanguageModel, Model, ModelRequest, ModelResponse, ToolCall
from millstream.agent._tools import Toolbox

__all__ = [
    "Agent",
    "AgentError",
    "AgentRun",
    "AnswerEnd",
    "AnswerQueue",
    "Approval",
    "AssistantMessage",
    "Configuration",
    "ConfigurationError",
    "ConnectedServer",
    "ContextError",
    "ContextWindowExceeded",
    "Event",
    "LanguageModel",
    "Limits",
    "Model",
    "ModelAuthError",
    "ModelError",
    "ModelRateLimited",
    "ModelRefused",
    "ModelRequest",
    "ModelResponse",
    "ModelRetry",
    "ModelServerError",
    "ModelUnreachable",
    "ResultsShortened",
    "RoundStart",
    "SamplingResult",
    "ServerConfig",
    "TextDelta",
    "ToolCall",
    "ToolEnd",
    "ToolProgress",
    "ToolStart",
    "Toolbox",
    "Transcript",
    "UserMessage",
]
