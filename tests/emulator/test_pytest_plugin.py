"""The fixture ``kling_emulator``, as a user's own tests get it from the installed distribution."""

from __future__ import annotations

import pytest

pytest_plugins = ["pytester"]


def test_a_test_that_takes_the_fixture_has_the_service_and_a_connection_to_it(
    pytester: pytest.Pytester,
) -> None:
    pytester.makepyfile(
        """
        import os
        import pytest
        import requests

        def ask(service):
            return requests.post(
                service.base_url + "/video/generations",
                json={"model": "kling-v3-omni", "prompt": "x"},
                headers={"Authorization": f"Bearer {service.api_key}"},
            )

        def test_videos_are_ready_at_once(kling_emulator):
            task_id = ask(kling_emulator).json()["data"]["taskId"]
            assert kling_emulator.ledger.task(task_id).state == "completed"
            assert os.environ["AIRFLOW_CONN_KLING_DEFAULT"] == kling_emulator.connection_uri

        def test_each_test_has_its_own(kling_emulator):
            assert kling_emulator.ledger.tasks() == []

        @pytest.mark.kling_emulator(latency=60, balance=1)
        class TestMarked:
            @pytest.mark.kling_emulator(balance=0)
            def test_the_nearest_marker_wins(self, kling_emulator):
                assert kling_emulator.service.settings.latency.median == 60
                assert ask(kling_emulator).status_code == 402

        def test_without_the_fixture_nothing_is_set():
            assert "AIRFLOW_CONN_KLING_DEFAULT" not in os.environ
        """
    )
    pytester.runpytest("--strict-markers", "-p", "no:cacheprovider").assert_outcomes(passed=4)
