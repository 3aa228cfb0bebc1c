"""Rewards in another process (``worker``), another environment (``environment``) or on another machine (``server``, ``client``)."""
