"""The TLS certificate, renewed without a restart.

The files are checked once a second. A matching new pair is used for new connections, and a mismatched one is ignored.
"""

import asyncio
import logging
import ssl
from pathlib import Path

from millstream._app.server_process.errors import CommandError

logger = logging.getLogger("millstream")

EVERY = 1.0

_Stamp = tuple[tuple[int, int, int], ...]


class Certificate:
    """A certificate chain and its key, as files."""

    def __init__(self, cert: str, key: str) -> None:
        """Load them.

        Raises:
            CommandError: they can't be used.
        """
        self._cert = Path(cert)
        self._key = Path(key or cert)
        try:
            self._seen = self._stamp()
            self.context = self._load()
        except (OSError, ssl.SSLError, ValueError) as exc:
            raise CommandError(
                "The certificate can't be used.",
                why=f"{exc.filename}: {exc.strerror}."
                if isinstance(exc, OSError) and exc.filename
                else f"{self._cert} and {self._key}: {exc}",
                fix="Use a certificate chain and its key in PEM form, without a passphrase: --tls-cert, --tls-key",
            ) from exc

    def _stamp(self) -> _Stamp:
        found = [path.stat() for path in (self._cert, self._key)]
        return tuple((each.st_mtime_ns, each.st_size, each.st_ino) for each in found)

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        context.load_cert_chain(self._cert, self._key, password=_no_passphrase)
        return context

    def renew(self) -> bool:
        """Use the current files if they are new and valid. Return whether they were."""
        try:
            stamp = self._stamp()
            if stamp == self._seen:
                return False
            self._load()  # in a separate context first, because half a renewal must not reach the active one
            self.context.load_cert_chain(self._cert, self._key, password=_no_passphrase)
        except (OSError, ssl.SSLError, ValueError) as exc:
            logger.debug("The renewed certificate can't be used yet: %s", exc)
            return False
        self._seen = stamp
        logger.info("The certificate was renewed.")
        return True

    async def watch(self) -> None:
        """Renew the certificate when the files change, until canceled."""
        while True:
            await asyncio.sleep(EVERY)
            self.renew()


def _no_passphrase() -> str:
    raise ValueError("the key has a passphrase")
