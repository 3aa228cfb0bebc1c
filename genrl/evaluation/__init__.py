"""Judging: fixed prompts and seeds to scores, diversity, statistics and a report."""
