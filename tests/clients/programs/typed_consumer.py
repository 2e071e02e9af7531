# pyright: strict
"""A program over every public name, as one would write it over a vendored copy.

pyright reads it in strict mode, where no type may be unknown or guessed; run, it prints "ok".
"""

from typing import Any
from typing import Dict
from typing import List
from typing import Mapping
from typing import Optional
from typing import Tuple

from shop.vendor.claude_gateway import Config
from shop.vendor.claude_gateway import ConfigError
from shop.vendor.claude_gateway import Gateway


def read_file(path: str) -> str:
    return {"key.txt": "sample-key"}[path]


def faults(settings: Mapping[str, Any]) -> List[str]:
    try:
        Config.from_dict(settings)
    except ConfigError as error:
        problems: List[str] = error.problems
        return problems
    return []


def configured() -> Config:
    config = Config.from_dict(
        {"auth": {"api_keys": ["${KEY}", "${file:key.txt}"]}, "providers": [{"name": "demo"}]},
        environ={"KEY": "another-sample"}, read_file=read_file, overrides={"port": 0})
    host: str = config.host
    port: int = config.port
    mode: str = config.auth_mode
    keys: int = len(config.auth.api_keys)
    names: Tuple[str, ...] = tuple(provider.name for provider in config.providers)
    strategy: str = config.routing.strategy
    tries: int = config.retry.max_attempts
    silence: float = config.timeouts.idle_seconds
    largest: int = config.limits.body_bytes
    collect: str = config.stream.collect
    texts: Tuple[str, str, str] = (config.warmup, config.telemetry, config.log.level)
    lists: Tuple[Tuple[str, ...], ...] = (config.cors_origins, config.allowed_hosts, config.warnings)
    assert (host, port, mode, keys, names) == ("127.0.0.1", 0, "all_except_health", 2, ("demo",))
    assert strategy and tries and silence and largest and collect and all(texts) and lists
    return config


def looked_at(gateway: Gateway) -> None:
    url: str = gateway.url
    port: int = gateway.port
    config: Config = gateway.config
    counts: Dict[str, int] = gateway.status()
    accounts: List[Dict[str, Any]] = gateway.accounts()
    local: Dict[str, Tuple[int, int]] = gateway.local_answers()
    records: List[Dict[str, Any]] = gateway.records(limit=10)
    restarts: List[str] = gateway.reload(config)
    gateway.note("info", "seen")
    assert url.endswith(":%d" % port) and counts["requests"] == 0, counts
    assert [account["state"] for account in accounts] == ["ready"], accounts
    assert (local, records) == ({}, [])
    assert restarts and "port" in restarts[0] or not restarts, restarts


def main() -> None:
    lines: List[str] = []
    environ: Optional[Mapping[str, str]] = {}
    gateway: Gateway = Gateway(configured(), lines.append, environ)
    with gateway as entered:
        looked_at(entered)
    again: Gateway = gateway.start()
    again.stop()
    assert any("seen" in line for line in lines), lines
    assert len(faults({"prot": 1})) == 1
    print("ok")


if __name__ == "__main__":
    main()
