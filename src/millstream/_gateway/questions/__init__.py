"""Which questions a client can be asked, and each question and answer in the form of the other side's revision.

Names that other folders may import, besides the public ones of `millstream.gateway`:

- `abilities`: ALL_ABILITIES, PLAIN_ABILITIES, QUESTIONS, UI, abilities_in, abilities_of, can_ask, capabilities_of,
  declare, limit_abilities
- `questions`: ForwardedQuestion, MAX_OPEN_QUESTIONS, MAX_REDACTED, PROGRESS, ProgressStep, Recipient, check_declared,
  describe_refused, name_sender, project_answer, project_question
"""
