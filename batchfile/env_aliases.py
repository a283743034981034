"""Environment variables without the prefix `BATCHFILE_` that set something: `PORT`, `MISTRAL_BASE_URL`, and the like.

A pool's variables begin with the first word of its name in capitals: `LLAMA_` for `llama-70b`. A base URL makes the
pool an HTTP pool. They override the file, and `BATCHFILE_*` overrides them. Pure: the environment is passed in.
"""

import re
from collections.abc import Iterable, Mapping

PORT = "PORT"
CONCURRENCY = "WORKER_CONCURRENCY"


def foreign_values(pools: Mapping[str, bool], environ: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Setting -> (variable, value), by dotted name. `pools`: each known pool, and whether it is an HTTP pool."""
    found: dict[str, tuple[str, str]] = {}
    if environ.get(PORT):
        found["port"] = (PORT, environ[PORT])
    for pool, is_http in pools.items():
        found.update(_pool_values(pool, is_http, environ))
    return found


def nested(values: Mapping[str, tuple[str, str]], pools: Iterable[str]) -> dict[str, object]:
    """The same as a tree of tables. A pool's name may contain dots, so it is matched, not split."""
    tree: dict[str, object] = {}
    tables: dict[str, dict[str, str]] = {}
    for name, (_, value) in values.items():
        pool = next((pool for pool in pools if name.startswith(f"pools.{pool}.")), None)
        if pool is None:
            tree[name] = value
        else:
            tables.setdefault(pool, {})[name.rsplit(".", 1)[1]] = value
    return tree | ({"pools": tables} if tables else {})


def _pool_values(pool: str, is_http: bool, environ: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    stem = re.split(r"[-._]", pool)[0].upper()
    found: dict[str, tuple[str, str]] = {}
    base_url, api_key = f"{stem}_BASE_URL", f"{stem}_API_KEY"
    if environ.get(base_url):
        found[f"pools.{pool}.engine"] = (base_url, "http")
        found[f"pools.{pool}.base_url"] = (base_url, environ[base_url])
    if environ.get(api_key):
        found[f"pools.{pool}.api_key"] = (api_key, environ[api_key])
    if environ.get(CONCURRENCY) and (is_http or environ.get(base_url)):
        found[f"pools.{pool}.max_num_seqs"] = (CONCURRENCY, environ[CONCURRENCY])
    return found
