"""What veRL loads at every `import verl` (entry-point group `verl.plugins`): light, and loud when it fails."""

from __future__ import annotations

import os
import sys
import traceback


def load() -> None:
    """Activate what this process must have before veRL goes on importing."""
    # The driver, every Ray worker and every vLLM process passes here, so on a GPU this imports nothing.
    if os.environ.get("VERL_PLATFORM", "").strip().lower() == "cpu":
        import verl_dra.cpu.platform  # noqa: F401  # activates itself


try:
    load()
except Exception:
    # veRL 0.9.1 logs a plugin's exception at DEBUG and carries on without the plugin (verl/__init__.py), so
    # the real error would surface elsewhere as something misleading. Logging may not be configured here yet.
    sys.stderr.write(f"ERROR: the veRL plugin verl_dra.plugin failed to load:\n{traceback.format_exc()}")
    raise
