"""
Apache Airflow provider for Kling Omni-Video.

Every Airflow process imports this module to learn what the provider offers, so it holds plain data only.
"""

from __future__ import annotations

TYPE_CHECKING = False  # what ``typing`` would say; importing that takes longer than all of this module
if TYPE_CHECKING:
    from typing import Any

__version__ = "0.1.0"

_INTEGRATION = "Kling Omni-Video"


def _modules(*names: str) -> dict[str, Any]:
    return {"integration-name": _INTEGRATION, "python-modules": list(names)}


def get_provider_info() -> dict[str, Any]:
    """Tell Airflow what this provider offers, in the form of Airflow's ``provider_info.schema.json``."""
    return {
        "package-name": "airflow-provider-kling",
        "name": _INTEGRATION,
        "description": "Generate videos with Kling Omni-Video from an Airflow Dag.",
        "integrations": [
            {
                "integration-name": _INTEGRATION,
                "external-doc-url": "https://apimodels.app",
                "tags": ["service"],
            }
        ],
        "operators": [
            _modules("airflow_provider_kling.operators.kling", "airflow_provider_kling.operators.batch")
        ],
        "sensors": [
            _modules("airflow_provider_kling.sensors.kling", "airflow_provider_kling.sensors.balance")
        ],
        "hooks": [_modules("airflow_provider_kling.hooks.kling")],
        "triggers": [
            _modules(
                "airflow_provider_kling.triggers.kling",
                "airflow_provider_kling.triggers.batch",
                "airflow_provider_kling.triggers.balance",
            )
        ],
        "connection-types": [
            {
                "connection-type": "kling",
                "hook-class-name": "airflow_provider_kling.hooks.kling.KlingHook",
                "hook-name": "Kling Omni-Video",
                "ui-field-behaviour": {
                    "hidden-fields": ["login", "port", "schema"],
                    "relabeling": {"password": "API key", "host": "Base URL"},
                    "placeholders": {
                        "password": "sk_…",
                        "host": "https://apimodels.app/api/v1",
                    },
                },
                "conn-fields": {
                    "connect_timeout": {
                        "label": "Connect timeout (seconds)",
                        "description": "How long to wait for a connection to the service; 10 unless set.",
                        "schema": {"type": ["number", "null"]},
                    },
                    "read_timeout": {
                        "label": "Read timeout (seconds)",
                        "description": "How long to wait for the service to send something; 30 unless set.",
                        "schema": {"type": ["number", "null"]},
                    },
                    "verify": {
                        "label": "Verify TLS",
                        "description": "Whether the service's certificate is checked.",
                        "schema": {"type": "boolean", "default": True},
                    },
                    "ca_bundle": {
                        "label": "CA bundle",
                        "description": "Path of a file with the certificates to check the service's with.",
                        "schema": {"type": ["string", "null"]},
                    },
                    "proxies": {
                        "label": "Proxy",
                        "description": "URL of a proxy; that of the environment unless set.",
                        "schema": {"type": ["string", "null"]},
                    },
                    "max_queries_per_second": {
                        "label": "Queries a second",
                        "description": (
                            "How often one triggerer asks for its waiting videos with this connection, at the most; "
                            "what [kling] max_queries_per_second says unless set."
                        ),
                        "schema": {"type": ["number", "null"]},
                    },
                    "prices": {
                        "label": "Prices (JSON)",
                        "description": (
                            "Prices of this account that differ, USD per second by model, mode and sound, such as "
                            '{"kling-v3-omni": {"std": {"plain": 0.05, "sound": 0.08, "original_sound": 0.07}}}.'
                        ),
                        "schema": {"type": ["string", "null"]},
                    },
                },
            }
        ],
        "task-decorators": [
            {
                "name": "kling_video",
                "class-name": "airflow_provider_kling.decorators.kling.kling_video_task",
            }
        ],
        "cli": ["airflow_provider_kling.cli.definition.airflow_commands"],
        "extra-links": ["airflow_provider_kling.links.kling.KlingVideoLink"],
        "config": {
            "kling": {
                "description": "Settings of the provider for Kling Omni-Video.",
                "options": {
                    "ledger_path": {
                        "description": (
                            "Directory on local disk or object storage, shared by all workers, where submissions are "
                            "remembered so that no retry buys a video twice: a URI or an absolute path. Needed before "
                            "Airflow 3.3; from then on it takes the place of Airflow's own task state store.\n"
                        ),
                        "version_added": "0.1.0",
                        "type": "string",
                        "example": "s3://conn_id@bucket/kling-ledger",
                        "default": None,
                    },
                    "max_failed_queries": {
                        "description": (
                            "How many queries about a video may fail in a row before contact with the service "
                            "counts as lost.\n"
                        ),
                        "version_added": "0.1.0",
                        "type": "integer",
                        "example": None,
                        "default": "5",
                    },
                    "max_queries_per_second": {
                        "description": (
                            "How many queries a second one triggerer makes with one connection, at the most. With "
                            "more waiting videos than that allows, all of them are asked for less often: N videos "
                            "every N / max_queries_per_second seconds. The extra 'max_queries_per_second' of a "
                            "connection beats this.\n"
                        ),
                        "version_added": "0.1.0",
                        "type": "float",
                        "example": None,
                        "default": "20",
                    },
                    "callback_base_url": {
                        "description": (
                            "URL under which the service on the Internet reaches Airflow's API server; it ends where "
                            "'/kling/callbacks' begins. Where it is set, the API server receives callbacks, and tasks "
                            "with callback=True wait for them (Airflow 3.1 and later).\n"
                        ),
                        "version_added": "0.1.0",
                        "type": "string",
                        "example": "https://airflow.example.com",
                        "default": None,
                    },
                    "callback_poll_interval": {
                        "description": (
                            "Seconds between two queries about a video that a callback will tell of: the net under "
                            "callbacks that get lost.\n"
                        ),
                        "version_added": "0.1.0",
                        "type": "float",
                        "example": None,
                        "default": "300",
                    },
                    "media_hosts": {
                        "description": (
                            "Origins, separated by commas, from which the page of videos in Airflow's UI may play what "
                            "was not stored. The service's own links lead to the default one.\n"
                        ),
                        "version_added": "0.1.0",
                        "type": "string",
                        "example": "https://r2.apimodels.app,https://media.example.com",
                        "default": "https://r2.apimodels.app",
                    },
                    "prices": {
                        "description": (
                            "Prices that differ from the service's table, as JSON: USD per second of output by model, "
                            "mode and sound (plain, sound, original_sound). What is not named keeps its price; a new "
                            "model or mode needs plain. The extra 'prices' of a connection beats this.\n"
                        ),
                        "version_added": "0.1.0",
                        "type": "string",
                        "example": '{"kling-v3-omni": {"std": {"plain": 0.05, "sound": 0.08}}}',
                        "default": None,
                    },
                },
            }
        },
    }
