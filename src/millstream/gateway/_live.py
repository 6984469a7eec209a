"""The configuration file of a running gateway, which changes without a restart.

The process that watches the file numbers its versions. With several workers, that's their parent: every worker prepares
a version, and then all use it at once.
"""

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from msgspec import Struct
from msgspec.structs import replace

from millstream._parts import PartHost
from millstream._protocol.errors import Confidential, LocalError
from millstream._tasks import watch
from millstream.files import stamp_of
from millstream.gateway._config import ConfigError, GatewayConfig, load_file, read_file
from millstream.gateway._upstream import Upstream
from millstream.gateway._upstream_config import UpstreamConfig
from millstream.protocol import Json

logger = logging.getLogger("millstream.gateway")


class ConfigVersion(Confidential, Struct, frozen=True):
    """One version of a configuration file, which may contain secrets."""

    number: int
    text: str
    digest: str
    """Digest of the file, and the files of keys, users, and accepted definitions that it names. It's short, so that it
    doesn't give away a weak secret in them.
    """
    targets: list[tuple[str, str]] = []
    """Name and target of each upstream in the first version, for the gateway's id, which doesn't change."""


class LivePart(Protocol):
    """The running gateway, from the perspective of its file. See `GatewayPart`."""

    async def prepare(self, configs: Sequence[UpstreamConfig]) -> dict[str, Upstream]: ...

    async def discard(self, upstreams: Iterable[Upstream]) -> None: ...

    def use(self, upstreams: Mapping[str, Upstream], configs: Sequence[UpstreamConfig], instructions: str) -> None: ...


Spread = Callable[[ConfigVersion, GatewayConfig], Awaitable[None]]
"""Uses a version everywhere. It raises an error to refuse it."""


class LiveConfig:
    """The versions of a configuration file in one process: the one that's in force, and the next one."""

    refusal: str = ""
    """Why the file's last version isn't in force, or empty if it is."""
    _part: LivePart | None = None
    _host: PartHost
    _prepared: tuple[ConfigVersion, GatewayConfig, dict[str, Upstream]] | None = None

    def __init__(self, path: Path, only: str = "", version: ConfigVersion | None = None) -> None:
        """Read the file.

        Args:
            path: Path of the file.
            only: Name of the one upstream to offer, under its own names. By default, all of them.
            version: The version in force, from the process that watches the file. By default, this one watches it.

        Raises:
            ConfigError: The file can't be used.
        """
        self.path: Path = path
        self._only = only
        self._watches = version is None
        text = read_file(path) if version is None else version.text
        self.config: GatewayConfig = load_file(path, text=text)
        """The configuration in force."""
        self.version: ConfigVersion = version or self._make_version(1, text, self.config)
        self._updating = asyncio.Lock()

    def choose(self, config: GatewayConfig) -> Sequence[UpstreamConfig]:
        """Return the upstreams to offer.

        Raises:
            ConfigError: The only one to offer doesn't exist.
        """
        upstreams = {each.name: each for each in config.upstreams}
        if self._only and self._only not in upstreams:
            raise ConfigError(f"{self.path} has no server {self._only!r}. It has: {', '.join(upstreams)}.")
        return [replace(upstreams[self._only], prefix="")] if self._only else config.upstreams

    def _make_version(self, number: int, text: str, config: GatewayConfig) -> ConfigVersion:
        digest = hashlib.sha256(text.encode())
        for each in config.files:
            digest.update(each.read_bytes() if each.is_file() else b"")
        targets = [(each.name, each.address) for each in self.choose(config)] if number == 1 else self.version.targets
        return ConfigVersion(number, text, digest.hexdigest()[:8], targets)

    # The process that watches the file

    async def watch(self, spread: Spread) -> None:
        """Watch the file, and use each new version."""
        changes = watch(lambda: [stamp_of(each) for each in (self.path, *self.config.files)])
        await self.update(spread)  # it may have changed since the start
        async for _ in changes:
            await self.update(spread)

    async def update(self, spread: Spread) -> None:
        """Read the file, and use it if it has changed."""
        async with self._updating:
            try:
                text = await asyncio.to_thread(read_file, self.path)
                config = await asyncio.to_thread(load_file, self.path, text=text, before=self.config)
                version = self._make_version(self.version.number + 1, text, config)
                if version.digest != self.version.digest:
                    if not self.choose(config):
                        raise ConfigError(f"{self.path} has no upstreams, but a running gateway needs one.")
                    await spread(version, config)
                    self.version, self.config = version, config
                refusal = ""
            except (ValueError, LocalError, OSError) as exc:
                refusal = str(exc)
            if refusal not in ("", self.refusal):
                logger.error("%s Version %d of the configuration stays in force.", refusal, self.version.number)
            self.refusal = refusal

    # The process that serves

    def open(self, part: LivePart, host: PartHost) -> None:
        """Change a gateway with the file until its server closes."""
        self._part, self._host = part, host
        host.report("configuration", self.describe)
        host.check_ready(lambda: self.refusal)
        if host.metrics is not None:
            host.metrics.read(
                "gauge",
                "gateway_config",
                "Workers that use this version of the configuration file.",
                lambda: {(str(self.version.number), self.version.digest): 1},
                ("version", "digest"),
            )
            host.metrics.read(
                "gauge",
                "gateway_config_refused",
                "Whether the configuration file has changed, but can't be used.",
                lambda: {(): float(bool(self.refusal))},
                merge="max",
            )
        if self._watches:
            host.run(self.watch(self._spread))

    def read_again(self) -> None:
        """Read the file now, unless the server hasn't started."""
        if self._part is not None:
            self._host.run(self.update(self._spread))

    def describe(self) -> Json:
        """Return the file, its version in force, and why its last version isn't."""
        version = self.version
        return {
            "file": str(self.path),
            "version": version.number,
            "digest": version.digest,
            **({"refused": self.refusal} if self.refusal else {}),
        }

    async def _spread(self, version: ConfigVersion, config: GatewayConfig) -> None:
        await self.prepare(version, config)
        await self.settle(version.number)

    async def prepare(self, version: ConfigVersion, config: GatewayConfig | None = None) -> None:
        """Prepare a version for `settle`, in which this process uses it.

        Raises:
            ValueError: It can't be used.
            LocalError: As above.
        """
        assert self._part is not None  # noqa: S101  the server has started
        if config is None:
            config = await asyncio.to_thread(load_file, self.path, text=version.text, before=self.config)
        try:
            upstreams = await self._part.prepare(self.choose(config))
        except (ValueError, LocalError) as exc:
            raise exc if isinstance(exc, ConfigError) else ConfigError(f"{self.path}: {exc}") from exc
        await self.settle(0)
        self._prepared = version, config, upstreams

    async def settle(self, number: int) -> None:
        """Use the prepared version if it has this number, or forget it."""
        prepared, self._prepared = self._prepared, None
        if prepared is None or self._part is None:
            return
        version, config, upstreams = prepared
        if version.number != number:
            await self._part.discard(upstreams.values())
            return
        before, after = ({one.name: one for one in self.choose(each)} for each in (self.config, config))
        self._part.use(upstreams, self.choose(config), config.instructions)
        self.version, self.config = version, config
        changes = {
            "added": [name for name in after if name not in before],
            "changed": [name for name in after if name in before and before[name] != after[name]],
            "removed": [name for name in before if name not in after],
        }
        text = ", ".join(f"{what} {', '.join(names)}" for what, names in changes.items() if names)
        logger.info("Version %d of %s is in force: %s", number, self.path, text or "no upstream has changed")
