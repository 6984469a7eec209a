"""Files of keys and users, as `millstream keys` and `millstream users` write them."""

from millstream.auth._authorization_server.users import UserFile
from millstream.auth._key_file import KeyFile

__all__ = ["KeyFile", "UserFile"]
