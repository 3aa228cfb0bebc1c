"""Prompt sets: our own in ``*.jsonl``, dedicated to the public domain (CC0-1.0), and how the public ones are read.

``mini.jsonl`` is written by hand; ``compose.jsonl`` and ``text.jsonl`` are what ``python -m genrl.prompts.build`` writes.
"""
