"""What an operator writes, as values: upstreams, credentials, processes, APIs, policies, and sets.

Names that other folders may import, besides the public ones of `millstream.gateway`:

- `api`: check_hosts, is_application
- `credentials`: BearerToken, ClientCredentials, Credentials, PerUserOAuth, StaticHeaders, TokenExchange
- `policy`: CommonRules, EVERYONE, QUESTIONS, Texts, ToolRules, find_unknown_names, impossible_rules, patterns_in
- `process`: ProcessOptions
- `sets`: SetOptions
- `upstream`: CHANGEABLE, UpstreamOptions
"""
