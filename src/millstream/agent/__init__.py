"""A conversation with a language model that uses the tools of MCP servers: ``async for event in agent.say("…")``.

Built on `millstream.client`. A model is any implementation of `model.Model`; the included one supports
OpenAI-compatible APIs and Azure OpenAI (``pip install 'millstream[agent]'``).
"""

from millstream.agent._agent import Agent
from millstream.agent._configuration import Configuration
from millstream.agent._events import (
    AgentError,
    Answer,
    AnswerEnd,
    AssistantMessage,
    ConfigurationError,
    ContextError,
    Delta,
    Event,
    Limits,
    ModelBroken,
    ModelDenied,
    ModelError,
    ModelLimited,
    ModelRefused,
    ModelRetry,
    ModelUnreachable,
    RoundStart,
    SamplingResult,
    ToolEnd,
    ToolProgress,
    ToolStart,
    UserMessage,
)
from millstream.agent._language_model import LanguageModel
from millstream.agent._model import Model, ModelRequest, Reply, ToolCall
from millstream.agent._servers import Approval, ServerAt

__all__ = [
    "Agent",
    "AgentError",
    "Answer",
    "AnswerEnd",
    "Approval",
    "AssistantMessage",
    "Configuration",
    "ConfigurationError",
    "ContextError",
    "Delta",
    "Event",
    "LanguageModel",
    "Limits",
    "Model",
    "ModelBroken",
    "ModelDenied",
    "ModelError",
    "ModelLimited",
    "ModelRefused",
    "ModelRequest",
    "ModelRetry",
    "ModelUnreachable",
    "Reply",
    "RoundStart",
    "SamplingResult",
    "ServerAt",
    "ToolCall",
    "ToolEnd",
    "ToolProgress",
    "ToolStart",
    "UserMessage",
]
