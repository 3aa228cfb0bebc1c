"""A reward on another machine, or in a process started by hand: ``genrl rewards serve NAME`` answers there."""

from __future__ import annotations

from genrl.remote.client import RemoteReward


class Http(RemoteReward):
    """The reward that answers at a URL; its kind and the metadata it reads are asked when the run begins.

    Args:
        url: ``http://host:port`` or https.
        token_env: environment variable that holds the token the server asks for.
        timeout_s: for one call.
        retries: tries after the first, when nothing comes or the server is in trouble.
        encoding: raw, or png: smaller, slower, the same scores.
    """

    def __init__(self, url: str, token_env: str = "", timeout_s: float = 60.0, retries: int = 3, encoding: str = "raw"):
        super().__init__(url, token_env=token_env, timeout_s=timeout_s, retries=retries, encoding=encoding)
