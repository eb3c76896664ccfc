"""A tiny reasoning task with several correct ways to each answer."""
