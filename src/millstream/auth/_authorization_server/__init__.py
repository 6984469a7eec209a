"""The built-in authorization server: ``auth.issuer(…)``.

OAuth 2.1 with PKCE (draft-ietf-oauth-v2-1, RFC 9700), clients that describe or register themselves, and tokens that the
guard of the same server accepts. Its state is in the server's store, so workers with the same one can handle its
requests.
"""
