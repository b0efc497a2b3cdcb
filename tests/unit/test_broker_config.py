"""The Celery configuration, and who has the last word on it."""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery

from pickaxe.broker import celery_config, configure
from pickaxe.errors import ConfigurationError

URL = "redis://localhost:6379/0"


def test_only_json_is_accepted_and_results_are_ignored() -> None:
    config = celery_config(URL, URL)
    assert config["accept_content"] == ["json"]
    assert {config[f"{kind}_serializer"] for kind in ("task", "result", "event")} == {"json"}
    assert config["task_ignore_result"] is True


def test_celery_knows_every_setting() -> None:
    app = Celery(set_as_current=False)
    known = set(app.conf) | {"redis_backend_health_check_interval"}  # documented, but not in its table
    assert set(celery_config(URL, URL)) <= known


def test_overrides_win_and_leave_the_rest_of_a_mapping_alone() -> None:
    config = celery_config(
        URL, overrides={"broker_transport_options": {"visibility_timeout": 5}, "task_acks_late": False}
    )
    assert config["broker_transport_options"]["visibility_timeout"] == 5
    assert config["broker_transport_options"]["socket_timeout"]
    assert config["task_acks_late"] is False


@pytest.mark.parametrize("order", ["user first", "user last", "user after first use"])
def test_plain_celery_configuration_on_the_app_wins(order: str) -> None:
    app = Celery(set_as_current=False)
    user = {"worker_prefetch_multiplier": 7, "broker_transport_options": {"visibility_timeout": 5}}
    if order == "user first":
        app.config_from_object(user)
    configure(app, celery_config(URL, URL))
    if order == "user after first use":
        assert app.conf.worker_prefetch_multiplier == 1
    if order != "user first":
        app.config_from_object(user)
    assert app.conf.worker_prefetch_multiplier == 7
    assert app.conf.broker_url == URL
    assert app.conf.broker_transport_options["visibility_timeout"] == 5
    assert app.conf.broker_transport_options["socket_timeout"]
    assert app.conf.task_acks_late is True
    app.conf.update(task_acks_late=False)
    assert app.conf.task_acks_late is False
    assert app.conf.task_default_queue == "celery"


def test_settings_changed_before_the_first_use_win_too() -> None:
    app = Celery(set_as_current=False)
    configure(app, celery_config(URL, URL))
    app.conf.task_acks_late = False
    assert app.conf.worker_prefetch_multiplier == 1
    assert app.conf.task_acks_late is False


def test_an_app_in_use_can_still_be_configured() -> None:
    app = Celery(set_as_current=False)
    assert app.conf.worker_prefetch_multiplier == 4
    configure(app, celery_config(URL, URL))
    assert app.conf.worker_prefetch_multiplier == 1


def test_without_a_result_url_there_is_no_result_backend() -> None:
    assert "result_backend" not in celery_config(URL)


def test_rabbitmq_gets_no_redis_options() -> None:
    assert celery_config("amqp://guest@localhost//")["broker_transport_options"] == {}


@pytest.mark.parametrize("steps", [[], [1, 2], [0, 0], [3, 0], [0, 10]])
def test_impossible_priority_steps_are_refused(steps: list[int]) -> None:
    with pytest.raises(ConfigurationError, match="priority_steps"):
        celery_config(URL, priority_steps=steps)


@pytest.mark.parametrize("url", ["db+postgresql://localhost/x", "rpc://", "nonsense"])
def test_results_can_only_be_kept_in_redis(url: str) -> None:
    with pytest.raises(ConfigurationError, match="chords"):
        celery_config(URL, url)


def test_the_defaults_are_not_shared_between_apps() -> None:
    first: dict[str, Any] = celery_config(URL)
    first["accept_content"].append("pickle")
    first["broker_transport_options"]["max_retries"] = 99
    assert celery_config(URL)["accept_content"] == ["json"]
    assert celery_config(URL)["broker_transport_options"]["max_retries"] != 99
