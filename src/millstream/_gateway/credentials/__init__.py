"""How a call signs in at its upstream: where its credentials come from, and accounts that callers connect.

Names that other folders may import, besides the public ones of `millstream.gateway`:

- `accounts`: ConnectionsPage, PersonalCredentials
- `provider_tokens`: ProviderTokensPart
- `setup`: create_credentials
- `source`: UpstreamCredentials
"""
