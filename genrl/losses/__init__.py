"""Objectives: pure functions of policy and batch. Each says in ``requires`` which signals it reads."""
