"""No secret is written anywhere: not by a wrong key of the configuration, not from the environment."""

from __future__ import annotations

import pytest

from syn4seg.config.loading import load
from syn4seg.config.tree import annotated
from syn4seg.doctor import versions
from syn4seg.errors import UserError
from syn4seg.store.rundir import RunDir

CHAT = ("prompts.agent=chat", "prompts.llm=m")


@pytest.mark.parametrize("agent", [(), CHAT], ids=["grammar", "chat"])
@pytest.mark.parametrize("address", ["http://user:hunter2hunter2@host/v1", "https://hunter2hunter2@host/v1"])
def test_an_address_with_a_password_is_refused_without_being_repeated_whoever_uses_it(agent, address):
    with pytest.raises(UserError, match=r"prompts\.base_url holds a user name or a key") as caught:
        load(None, [*agent, f"prompts.base_url={address}"])
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("key", ["sk-hunter2hunter2", "hunter2 hunter2", "x" * 100, ""])
def test_a_key_in_place_of_the_name_of_its_variable_is_refused_without_being_repeated(key):
    with pytest.raises(UserError, match="key_variable") as caught:
        load(None, [f"prompts.key_variable='{key}'"])
    assert not key or key not in str(caught.value)


def test_what_a_run_says_of_its_making_holds_nothing_from_the_environment(tmp_path, monkeypatch, small):
    for name in ("HF_TOKEN", "OPENAI_API_KEY", "RAY_AUTH_TOKEN", "AWS_SECRET_ACCESS_KEY", "USER", "HOSTNAME"):
        monkeypatch.setenv(name, f"hunter2-{name}")
    config, run = load(None, small), RunDir(tmp_path / "run")
    run.open(config)
    run.write_inputs({})
    run.write_provenance(config, versions())
    run.log(stage="x")
    written = [path.read_text() for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert len(written) >= 4
    assert not any("hunter2" in text or str(tmp_path) in text for text in written)
    assert "hunter2" not in annotated(config)
