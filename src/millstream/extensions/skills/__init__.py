"""Skills (``io.modelcontextprotocol/skills``): instructions for models, as folders or in code.

``skills.add("skills/")`` serves folders with a `SKILL.md`, ``@skills.skill`` defines a skill by a function, and
``await client.skills()`` lists the skills of a server.
"""

from millstream.extensions.skills._extension import Skills
from millstream.extensions.skills._function import SkillOptions
from millstream.protocol import Skill, SkillResource

__all__ = ["Skill", "SkillOptions", "SkillResource", "Skills"]
