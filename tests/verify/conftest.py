# SPDX-License-Identifier: GPL-3.0-or-later
"""Does every VPS look as declared? pytest tests/verify [--inventory inventory.py] [--limit HOST]

operations/verifying.py makes pytest look at the VPSes; test_vps.py beside has the checks. A file of
your own here, or one named on the command line as well, may have more: docs/verification.md.
"""

from __future__ import annotations

import pytest


def pytest_addoption(pluginmanager: pytest.PytestPluginManager) -> None:
    """A plugin, so that it is there for files elsewhere, too; a conftest.py is not."""
    pluginmanager.import_plugin("operations.verifying")


def pytest_ignore_collect(config: pytest.Config) -> bool | None:
    """Verify only if asked for by name: `pytest tests` does not log in anywhere."""
    plugin = config.pluginmanager.get_plugin("operations.verifying")
    return None if plugin and plugin.is_asked_for(config) else True
