"""The configuration file of a running gateway, which changes without a restart.

The process that watches the file numbers its versions. With several workers, that's their parent: the workers prepare a
version, and then use it.
"""

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Protocol

from msgspec.structs import replace

from millstream._config import ConfigVersion
from millstream._gateway.files.read import load_file, read_file
from millstream._gateway.files.values import ConfigError, ConfigValue, GatewayConfig
from millstream._gateway.options.sets import SetConfig
from millstream._gateway.options.upstream import UpstreamConfig
from millstream._gateway.upstreams.upstream import Upstream
from millstream._parts import PartHost
from millstream._protocol.errors import LocalError, MissingExtra
from millstream._tasks import watch
from millstream.files import stamp_of
from millstream.protocol import Json, is_object, members

logger = logging.getLogger("millstream.gateway")


_LIVE = frozenset({"instructions", "policy", "sets", "upstreams"})
"""Members that can change while the gateway runs."""


def _check_fixed(before: ConfigValue, after: ConfigValue) -> None:
    """Raise a `ConfigError` for the first member that has changed, but can't while the gateway runs."""
    old, new = members(before.value), members(after.value)
    for name in dict.fromkeys((*old, *new)):
        if old.get(name) == new.get(name) or (not after.where and name in _LIVE):
            continue
        if not after.where and (is_object(old.get(name)) or is_object(new.get(name))):
            _check_fixed(before.member(name), after.member(name))
        raise after.member(name).error(
            "it can't change while the gateway runs. Restart the gateway, or undo the change."
        )


_HALF_WRITTEN_SECONDS = 1.0
"""Seconds before a shorter file is used, because a program can be writing it."""


class LivePart(Protocol):
    """The running gateway, from the perspective of its file. See `LiveGatewayPart`."""

    async def prepare(self, configs: Sequence[UpstreamConfig], *, has_sets: bool) -> dict[str, Upstream]: ...

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

    def __init__(self, path: Path, only: str = "", version: ConfigVersion | None = None) -> None:
        """Read the file.

        Args:
            path: Path of the file.
            only: Name of the one upstream to offer, under its own names, or of the only set. By default, all of them.
            version: The version in force, from the process that watches the file. By default, this one watches it.

        Raises:
            ConfigError: The file can't be used.
        """
        self.path: Path = path
        self._only = only
        self._watches = version is None
        self._requests = 0
        stamp = stamp_of(path)
        text = read_file(path) if version is None else version.text
        self.config: GatewayConfig = load_file(path, text=text)
        """The configuration in force."""
        self.version: ConfigVersion = version or self._make_version(1, text, self.config)
        self._first_look = (0, stamp, *self._look()[2:])
        self._numbers = count(self.version.number + 1)
        self.on_update: Callable[[], None] = lambda: None
        """Called when the file has been read."""
        self.updating: asyncio.Lock = asyncio.Lock()
        """Held while a version is chosen, or a worker prepares or uses one."""
        self.agreed: asyncio.Event = asyncio.Event()
        """Set when the process that watches the file has said that this one uses the version in force."""
        self._prepared: tuple[ConfigVersion, GatewayConfig, dict[str, Upstream]] | None = None

    def choose(self, config: GatewayConfig) -> Sequence[UpstreamConfig]:
        """Return the upstreams to offer.

        Raises:
            ConfigError: The only upstream or set to offer doesn't exist.
        """
        upstreams, sets = {each.name: each for each in config.upstreams}, {each.name for each in config.sets}
        if not self._only or (self._only in sets and self._only not in upstreams):
            return config.upstreams
        if self._only not in upstreams:
            raise ConfigError(f"{self.path} has no server {self._only!r}. It has: {', '.join([*upstreams, *sets])}.")
        return [replace(upstreams[self._only], prefix="")]

    def choose_sets(self, config: GatewayConfig, main_path: str) -> Sequence[SetConfig]:
        """Return the sets to serve. The only one has the main path."""
        if not self._only:
            return config.sets
        chosen = [each for each in config.sets if each.name == self._only]
        return [replace(each, path=main_path) for each in chosen if self.choose(config) is config.upstreams]

    def _make_version(self, number: int, text: str, config: GatewayConfig) -> ConfigVersion:
        """Return a version, with a digest of the file and of those that it names.

        Raises:
            ConfigError: One of them can't be read.
        """
        digest = hashlib.sha256(text.encode())
        for each in config.files:
            try:
                digest.update(each.read_bytes() if each.is_file() else b"")
            except OSError as exc:
                raise ConfigError(f"{each} can't be read: {exc.strerror}. The gateway's user has to read it.") from exc
        targets = [(each.name, each.address) for each in self.choose(config)] if number else self.version.targets
        return ConfigVersion(number, text, digest.hexdigest()[:8], targets)

    # The process that watches the file

    async def watch(self, spread: Spread) -> None:
        """Watch the file, and use each new version."""
        async for _ in watch(self._look, self._first_look):
            await self.update(spread)

    def _look(self) -> tuple[object, ...]:
        return self._requests, *(stamp_of(each) for each in (self.path, *self.config.files))

    async def update(self, spread: Spread) -> None:
        """Read the file, and use it if it has changed."""
        async with self.updating:
            try:
                if len(await asyncio.to_thread(read_file, self.path)) < len(self.version.text):
                    await asyncio.sleep(_HALF_WRITTEN_SECONDS)
                version, config = await asyncio.to_thread(self.read, self.config)
                if version is not self.version:
                    await spread(version, config)
                    self.version, self.config = version, config
                refusal = ""
            except Exception as exc:
                refusal = self._explain(exc)
            if refusal not in ("", self.refusal):
                logger.error("%s Version %d of the configuration stays in force.", refusal, self.version.number)
            self.refusal = refusal
            self.on_update()

    def read(self, before: GatewayConfig | None = None) -> tuple[ConfigVersion, GatewayConfig]:
        """Return the next version of the file, or the one in force if it's the same.

        Args:
            before: The configuration of a running gateway, which can't change some options.

        Raises:
            ConfigError: It can't be used.
            OSError: A file that it names can't be read.
        """
        text = read_file(self.path)
        config = load_file(self.path, text=text)
        if before is not None and before.written is not None and config.written is not None:
            _check_fixed(before.written, config.written)
        if not self.choose(config):
            raise ConfigError(f"{self.path} has no upstreams. Add one, or stop the gateway.")
        if not self.config.upstreams:
            raise ConfigError(f"{self.path}: the gateway started without upstreams. Restart it to add the first one.")
        version = self._make_version(0, text, config)
        if version.digest == self.version.digest:
            return self.version, self.config
        return replace(version, number=next(self._numbers)), config

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
        """Read the file soon, even if it looks the same."""
        self._requests += 1

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
        await self._prepare(version, config)
        await self._settle(version.number)

    def prepare(self, version: ConfigVersion, reply: Callable[[str], None]) -> None:
        """Prepare a version in the background, for `settle`.

        Args:
            version: A version from the parent process.
            reply: Called with the reason if it can't be used, or else with an empty string.
        """

        async def prepare() -> None:
            async with self.updating:
                try:
                    await self._prepare(version)
                    error = ""
                except Exception as exc:
                    error = self._explain(exc)
                reply(error)

        self._host.run(prepare())

    def settle(self, number: int, refusal: str) -> None:
        """Use a prepared version in the background, if it isn't in force here.

        Args:
            number: The version in force.
            refusal: Why the file's last version isn't in force, or empty if it is.
        """

        async def settle() -> None:
            async with self.updating:
                self.refusal = refusal
                await self._settle(number)
                if self.version.number == number:
                    self.agreed.set()

        self._host.run(settle())

    async def _prepare(self, version: ConfigVersion, config: GatewayConfig | None = None) -> None:
        assert self._part is not None  # noqa: S101  the server has started
        if config is None:
            config = await asyncio.to_thread(load_file, self.path, text=version.text)
        await self._settle(0)
        try:
            sets = self.choose_sets(config, self._host.settings.path)
            if self._host.sets is not None:
                self._host.sets.check(sets)
            upstreams = await self._part.prepare(self.choose(config), has_sets=bool(sets))
        except (ValueError, LocalError, MissingExtra) as exc:
            raise ConfigError(f"{self.path}: {exc}") from exc
        self._prepared = version, config, upstreams

    def _explain(self, exc: Exception) -> str:
        """Return why a version can't be used. An error that isn't about the file is logged."""
        if isinstance(exc, ValueError | LocalError | OSError | MissingExtra):
            return str(exc)
        logger.error("%s can't be used", self.path, exc_info=exc)
        return f"{self.path} can't be used, because of an unexpected error, which is in the log."

    async def _settle(self, number: int) -> None:
        """Use the prepared version if it has this number, or forget it."""
        if self._prepared is None or self._part is None:
            return
        (version, config, upstreams), self._prepared = self._prepared, None
        if version.number != number:
            await self._part.discard(upstreams.values())
            return
        before, after = ({one.name: one for one in self.choose(each)} for each in (self.config, config))
        self._part.use(upstreams, self.choose(config), config.instructions)
        if self._host.sets is not None:
            self._host.sets.use(self.choose_sets(config, self._host.settings.path))
        self.version, self.config = version, config
        changes = {
            "added": [name for name in after if name not in before],
            "changed": [name for name in after if name in before and before[name] != after[name]],
            "removed": [name for name in before if name not in after],
        }
        text = ", ".join(f"{what} {', '.join(names)}" for what, names in changes.items() if names)
        logger.info("Version %d of %s is in force: %s", version.number, self.path, text or "no upstream has changed")
