"""An auth manager for tests that tells people's Dags apart, which Airflow's own simple one does not."""

from __future__ import annotations

import json
import os
from typing import Any

from airflow.api_fastapi.auth.managers.simple.simple_auth_manager import SimpleAuthManager

RIGHTS = "TEST_RIGHTS"
"""Environment variable: a JSON object with the Dag ids that each person may read. Who is not named may read all."""


class RightsByDag(SimpleAuthManager):
    """Airflow's simple auth manager, where some people may read some Dags only."""

    def is_authorized_dag(
        self, *, method: Any, user: Any, access_entity: Any = None, details: Any = None
    ) -> bool:  # type: ignore[override]
        """Tell whether somebody may do this with a Dag; with "all Dags" everybody may, since lists are filtered."""
        own = json.loads(os.environ.get(RIGHTS, "{}")).get(user.username)
        dag_id = details.id if details is not None else None
        if own is not None and dag_id is not None and dag_id not in own:
            return False
        return super().is_authorized_dag(
            method=method, user=user, access_entity=access_entity, details=details
        )
