"""All that meets veRL: its trainer, task runner, estimator and reward manager, with DRA in their place."""
