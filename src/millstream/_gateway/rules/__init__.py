"""What a policy makes of an item: who sees it, with which name, arguments, limits, approvals, and results.

Names that other folders may import, besides the public ones of `millstream.gateway`:

- `approval`: answer_approval
- `patterns`: key_forms, matcher, path_and_parts, uri_key
- `policy`: ItemRules, Policy, RestrictedPattern
- `requests`: ANSWER_APPROVAL, AnswerRefused, ApprovalRequest, ApprovalRequests, CHANNEL, GET_APPROVED_RESULT,
  find_version, is_any_approver
- `results`: CHARACTERS_PER_TOKEN, NoResponse, READ_RESOURCE, Redactor, StoredResults, call_error, has_companion,
  limit_result, split_result
"""
