"""Programs of other libraries as upstreams: which library a server object is from, and how it runs here.

Names that other folders may import, besides the public ones of `millstream.gateway`:

- `auth`: ProgramAuth
- `libraries`: ProgramError, UnsupportedVersion, hosts_and_origins, library_of
- `program`: Program, ProgramApplication, SIGN_IN, caller_of, program_of, upstream_of
"""
