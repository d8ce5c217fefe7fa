"""The trigger is tested against the same connections and servers as the hooks."""

from __future__ import annotations

from tests.hooks.conftest import _no_settings_of_the_machine, certificate, connect, failing_lookups, log_text

__all__ = ["_no_settings_of_the_machine", "certificate", "connect", "failing_lookups", "log_text"]
