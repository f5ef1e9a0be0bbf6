"""The fleet's settings: where each value comes from, what is refused, and what is never shown."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedfleet.errors import ConfigurationError
from embedfleet.masking import mask_url
from embedfleet.settings import FleetSettings, load

SECRET = "very-secret"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, empty."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refusal(**arguments: object) -> str:
    with pytest.raises(ConfigurationError) as refused:
        load(**arguments)
    return str(refused.value)


# Precedence


def test_arguments_over_environment_over_dotenv_over_toml_over_defaults(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load().queue_prefix == "embedfleet"
    (folder / "embedfleet.toml").write_text('queue_prefix = "from-toml"\n')
    assert load().queue_prefix == "from-toml"
    (folder / ".env").write_text("EMBEDFLEET_QUEUE_PREFIX=from-dotenv\n")
    assert load().queue_prefix == "from-dotenv"
    monkeypatch.setenv("EMBEDFLEET_QUEUE_PREFIX", "from-environment")
    assert load().queue_prefix == "from-environment"
    assert load(queue_prefix="from-argument").queue_prefix == "from-argument"


def test_an_argument_that_is_none_was_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBEDFLEET_MODEL", "from the environment")
    assert load(model=None).model == "from the environment"


@pytest.mark.parametrize("name", FleetSettings.model_fields)
def test_every_setting_can_come_from_the_environment(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"engine": "synthetic", "dtype": "float32", "queues": "bulk", "signing_key": "7" * 16}
    value = values.get(name, "77")
    monkeypatch.setenv(f"EMBEDFLEET_{name.upper()}", value)
    default = FleetSettings.model_fields[name].get_default()
    assert name in load().model_fields_set
    assert getattr(load(), name) != default


def test_allowed_stores_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setenv("EMBEDFLEET_ALLOWED_STORES", "/a, /b ,,s3://c")
    assert load().allowed_stores == ("/a", "/b", "s3://c")
    monkeypatch.delenv("EMBEDFLEET_ALLOWED_STORES")
    (folder / "embedfleet.toml").write_text('allowed_stores = ["/a", "/b"]\n')
    assert load().allowed_stores == ("/a", "/b")


@pytest.mark.parametrize(("queues", "needed"), [("deliver", False), ("deliver,deliver", False), ("bulk,deliver", True)])
def test_only_a_worker_that_embeds_needs_an_engine(queues: str, needed: bool) -> None:
    assert load(queues=queues).needs_engine is needed


# Refusals


def test_an_unknown_variable_is_refused_with_the_one_that_was_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBEDFLEET_MODLE", "x")
    assert refusal() == "EMBEDFLEET_MODLE: no such setting. Did you mean EMBEDFLEET_MODEL?"


def test_an_unknown_variable_like_no_other_is_refused_with_all_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBEDFLEET_QQQQQQQQQ", "x")
    assert refusal().startswith("EMBEDFLEET_QQQQQQQQQ: no such setting. Known: EMBEDFLEET_ALLOWED_STORES, ")


def test_an_unknown_key_of_the_file_is_refused_by_name(folder: Path) -> None:
    (folder / "embedfleet.toml").write_text('modle = "x"\n')
    assert "'modle'" in refusal()


def test_an_unknown_setting_in_dotenv_is_refused_by_name(folder: Path) -> None:
    (folder / ".env").write_text("EMBEDFLEET_MODLE=x\n")
    assert "embedfleet_modle" in refusal().lower()


def test_what_dotenv_holds_for_other_programs_is_none_of_our_business(folder: Path) -> None:
    (folder / ".env").write_text("DATABASE_URL=postgres://host\nSTORE=/elsewhere\nEMBEDFLEET_MODEL=from dotenv\n")
    assert (load().model, load().store) == ("from dotenv", None)


def test_an_unknown_argument_is_refused_by_name() -> None:
    assert "'modle'" in refusal(modle="x")


@pytest.mark.parametrize("content", [b"model = [\n", b"\xff", b"model"])
def test_a_file_that_is_no_toml_is_named(folder: Path, content: bytes) -> None:
    (folder / "embedfleet.toml").write_bytes(content)
    assert "embedfleet.toml" in refusal()


def test_a_dotenv_file_that_is_no_text_is_named(folder: Path) -> None:
    (folder / ".env").write_bytes(b"EMBEDFLEET_MODEL=\xff\n")
    assert ".env" in refusal()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("engine", "tensorflow"),
        ("dtype", "int8"),
        ("max_tokens", "7"),
        ("max_tokens", "many"),
        ("lease_s", "0"),
        ("lease_s", "nan"),
        ("queue_prefix", "With Space"),
        ("queue_prefix", "p" * 21),
        ("synthetic_texts_per_s", "-1"),
    ],
)
def test_a_wrong_value_is_refused_naming_the_setting(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"EMBEDFLEET_{name.upper()}", value)
    assert refusal().startswith(f"configuration: {name}: ")


def test_a_refusal_does_not_repeat_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBEDFLEET_CACHE_SALT", SECRET)
    monkeypatch.setenv("EMBEDFLEET_LEASE_S", "soon")
    assert SECRET not in refusal(broker_url=f"redis://:{SECRET}@host")


def test_a_signing_key_that_can_be_guessed_is_refused_and_not_shown() -> None:
    said = refusal(signing_key=f"  {SECRET}    \n")
    assert said.startswith("configuration: signing_key: ")
    assert "at least 16 characters" in said
    assert SECRET not in said


def test_a_signing_key_is_the_same_with_and_without_the_end_of_its_line() -> None:
    assert load(signing_key=f" {SECRET * 2}\n") == load(signing_key=SECRET * 2)


def test_those_who_share_a_fleet_share_its_signing_key() -> None:
    assert load(signing_key=SECRET * 2).shared()["EMBEDFLEET_SIGNING_KEY"] == SECRET * 2


# Secrets


def secretive() -> FleetSettings:
    url = f"redis://me:{SECRET}@host:6379/0"
    return load(broker_url=url, cache_url=url, cache_salt=SECRET, signing_key=SECRET * 2)


def test_secrets_are_in_no_repr() -> None:
    assert SECRET not in repr(secretive())
    assert SECRET not in str(secretive())
    assert SECRET not in secretive().model_dump_json()


def test_masked_shows_everything_but_secrets() -> None:
    masked = secretive().masked()
    assert set(masked) == set(FleetSettings.model_fields)
    assert masked["broker_url"] == masked["cache_url"] == "redis://me:***@host:6379/0"
    assert masked["model"] == secretive().model
    assert SECRET not in repr(masked)


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("redis://host:6379/0", "redis://host:6379/0"),
        ("redis://:pw@host", "redis://:***@host"),
        ("redis://me:pw@host", "redis://me:***@host"),
        ("redis://me:p w@host/0", "redis://me:***@host/0"),
        ("rediss://me:p:w@host/0", "rediss://me:***@host/0"),
        ("rediss://me:p@w@host/0", "rediss://me:***@host/0"),
        ("redis://me:p/w@host:6379/0", "redis://me:***@host:6379/0"),
        ("redis://me:p?w#x@host:6379/0", "redis://me:***@host:6379/0"),
        ("redis+socket:///run/r.sock", "redis+socket:///run/r.sock"),
        ("redis+socket:///run/r.sock?password=pw&db=1", "redis+socket:///run/r.sock?password=***&db=1"),
        ("redis://host/0?db=1&password=pw", "redis://host/0?db=1&password=***"),
        ("redis://host/0?db=1&password=p@w", "redis://host/0?db=1&password=***"),
        ("redis+sentinel://me:pw@a:1,b:2/m/0", "redis+sentinel://me:***@a:1,b:2/m/0"),
        ("redis+sentinel://a:1,b:2/m", "redis+sentinel://a:1,b:2/m"),
        ("redis+sentinel://:pw@a:1,:pw@b:2/m", "redis+sentinel://:***@b:2/m"),
        ("redis+sentinel://a/m?sentinel_password=p@w", "redis+sentinel://a/m?sentinel_password=***"),
        ("from redis://me:pw@a to redis://me:pw@b", "from redis://me:***@a to redis://me:***@b"),
        ("", ""),
    ],
)
def test_passwords_in_urls_are_masked_wherever_they_are(url: str, masked: str) -> None:
    assert mask_url(url) == masked


@pytest.mark.parametrize("name", ["store", "broker_url", "max_tokens", "queue_prefix"])
def test_what_is_set_to_nothing_is_not_set(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a compose file does with a variable that is not there."""
    monkeypatch.setenv(f"EMBEDFLEET_{name.upper()}", "")
    assert getattr(load(), name) == getattr(load(**{name: ""}), name) == FleetSettings.model_fields[name].default


@pytest.mark.parametrize("name", ["SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_HTTP", "PORT", "PORT_80_TCP_ADDR"])
@pytest.mark.parametrize("service", ["EMBEDFLEET", "EMBEDFLEET_REDIS"])
def test_what_kubernetes_sets_for_a_service_of_our_name_is_none_of_ours(
    service: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"{service}_{name}", "10.0.0.1")
    load()


def test_settings_cannot_be_changed_by_accident() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load().model = "another"


# Handing them on to a worker

paths = st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1, max_size=12)
listed = st.text(st.characters(exclude_characters="\0, ", codec="utf-8"), min_size=1, max_size=12)  # commas separate


@given(store=paths, stores=st.lists(listed, max_size=3), model=paths, salt=paths)
def test_a_process_given_the_environment_has_the_same_settings(
    store: str, stores: list[str], model: str, salt: str
) -> None:
    url = "redis://me:pw@host/0"
    secrets = {"cache_salt": salt, "broker_url": url, "signing_key": SECRET * 2}
    before = load(store=store, allowed_stores=tuple(stores), model=model, lease_s=7.5, **secrets)
    with pytest.MonkeyPatch.context() as patched:
        for name, value in before.environment().items():
            patched.setenv(name, value)
        assert load() == before


@pytest.mark.parametrize("deadline_s", ["inf", "1e10", "nan", "0"])
def test_a_deadline_that_no_clock_can_wait_for_is_refused(deadline_s: str) -> None:
    with pytest.raises(ConfigurationError, match="deadline_s"):
        load(deadline_s=deadline_s)
