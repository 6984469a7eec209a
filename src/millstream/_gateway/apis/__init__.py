"""HTTP APIs as upstreams: an OpenAPI document becomes items that send requests.

Names that other folders may import, besides the public ones of `millstream.gateway`:

- `items`: LocalApp, register
- `upstream`: ApiUpstream
"""
