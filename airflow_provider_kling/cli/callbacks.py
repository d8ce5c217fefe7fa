"""Sees whether callbacks get through to Airflow's API server, by sending one as the service would."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow_provider_kling import config
from airflow_provider_kling.api.errors import KlingError
from airflow_provider_kling.callbacks import CallbackToken, check_conn_type, url_of

if TYPE_CHECKING:
    import requests

    from airflow_provider_kling.hooks.settings import ConnectionSettings

SECONDS = 15.0
"""For each call to be answered. The service itself waits 10."""
_BODY = {"code": 200, "data": {"taskId": "callback-check", "state": "completed", "resultJson": None}}


class CallbackCheckError(KlingError):
    """A callback would not arrive, or nothing would be checked when it does."""

    default_next_step = ""


def check_callbacks(settings: ConnectionSettings) -> str:
    """
    Send a callback that is about no task, and a forged one.

    The connection's proxy is left out: the service's calls come from elsewhere.

    :return: what was found, for a person.
    :raises CallbackCheckError: where callbacks do not work, saying where to look.
    :raises AirflowConfigException: where ``[kling] callback_base_url`` is missing or wrong.
    """
    import requests

    base_url = config.require_callback_base_url()
    token = CallbackToken.for_check(settings.conn_id)
    try:
        check_conn_type(settings)
        genuine = token.sign(settings.key)
    except ValueError as error:
        raise CallbackCheckError(
            f"Connection {settings.conn_id!r}: {error}", next_step="Correct the connection."
        ) from None
    forged = token.sign(f"not {settings.key}")
    with requests.Session() as session:
        session.trust_env = False
        answer = _send(session, base_url, genuine)
        if answer.status_code != requests.codes.ok or _text(answer) != "OK":
            what, next_step = _what_is_wrong(base_url, answer)
            raise CallbackCheckError(what, next_step=next_step)
        answer = _send(session, base_url, forged)
        if answer.status_code != requests.codes.not_found:
            raise CallbackCheckError(
                f"{base_url} answers a forged callback with HTTP {answer.status_code}",
                next_step="Something that is not Airflow's receiver answers there: look at the proxy in front of it.",
            )
    return f"{base_url} takes callbacks, and refuses forged ones."


def _send(session: requests.Session, base_url: str, token: str) -> requests.Response:
    import requests

    try:
        return session.post(url_of(base_url, token), json=_BODY, timeout=SECONDS, allow_redirects=False)
    except requests.RequestException as error:
        # Its text has the address in it.
        raise CallbackCheckError(
            f"{base_url} cannot be called from here: {type(error).__name__}",
            next_step=(
                "See whether the name is right, the API server runs, its port is open and its certificate is one that "
                "everybody trusts. From inside a network its public address can be out of reach: check from outside."
            ),
        ) from None


def _what_is_wrong(base_url: str, answer: requests.Response) -> tuple[str, str]:
    import requests

    what = f"{base_url} answers a genuine callback with HTTP {answer.status_code}"
    if answer.status_code == requests.codes.not_found and _text(answer) == "Not Found":
        return what, (
            "Either the API server does not know this connection, or has another key for it: see its log. Or it has no "
            "receiver: set [kling] callback_base_url for it as well, and restart it (Airflow 3.1 or later)."
        )
    if answer.status_code == requests.codes.unavailable:
        return what, "The API server cannot ask its database now, or has too much to do: see its log."
    return what, (
        "That is not Airflow's receiver: look at the proxy in front of it. It has to hand on "
        "POST /kling/callbacks/..., without a login and without a redirect."
    )


def _text(answer: requests.Response) -> str | None:
    try:
        document = answer.json()
    except ValueError:
        return None
    return document.get("detail") if isinstance(document, dict) else None
