"""Vectors of completions, made while others are still being generated, and what they say of their groups."""
