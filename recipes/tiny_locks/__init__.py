"""A task with four right ways of which a lock says which ones count, and a study of arms that keep ways or don't."""
