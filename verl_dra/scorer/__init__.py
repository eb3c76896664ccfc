"""Diversity scores of completion groups, computed while other completions are still being generated."""
