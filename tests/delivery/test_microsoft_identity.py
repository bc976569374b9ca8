"""Tokens: single flight, trouble at the endpoint, wrong secrets, and nothing in a log."""
# ruff: noqa: F811 (a fixture that is imported)

import asyncio
import base64
import json
import logging
import subprocess
import threading
import time

import httpx
import pytest

from delivery.outcomes import Accepted, Phase, Unavailable
from delivery.providers.microsoft_identity import (
    CLOUDS,
    IdentityError,
    MicrosoftIdentity,
    shared_identity,
)
from tests.delivery.graph_world import letter, world  # noqa: F401
from tests.emulators.graph import Answer, Fault, GraphEmulator

SCOPE = CLOUDS["global"].graph_scope
TOKEN = "oauth2"


def token(identity, scope=SCOPE, **named):
    return asyncio.run(identity.token(scope, **named))


def test_a_token_is_kept_until_five_minutes_before_its_end(world):
    identity = world.identity()
    first = token(identity)
    world.clock.advance(minutes=50)
    assert token(identity) == first
    world.clock.advance(minutes=6)
    assert token(identity) != first
    assert len(world.emulator.requests(TOKEN)) == 2


def test_many_who_wait_for_a_token_make_one_call(world):
    identity = world.identity()

    async def all_at_once():
        return await asyncio.gather(*(identity.token(SCOPE) for _ in range(20)))

    assert len(set(asyncio.run(all_at_once()))) == 1
    assert len(world.emulator.requests(TOKEN)) == 1


def test_msal_never_runs_in_the_event_loops_thread(world):
    threads = []
    inner = world.login

    class Watching:
        def post(self, *arguments, **named):
            threads.append(threading.current_thread())
            return inner.post(*arguments, **named)

        def get(self, *arguments, **named):
            threads.append(threading.current_thread())
            return inner.get(*arguments, **named)

    token(world.identity(http_client=Watching()))
    assert threads
    assert threading.main_thread() not in threads


def test_graph_and_smtp_have_tokens_of_their_own(world):
    identity = world.identity()
    assert token(identity) != token(identity, CLOUDS["global"].smtp_scope)
    audiences = {audience for audience, _until in world.emulator.tokens.values()}
    assert audiences == {"https://graph.microsoft.com", "https://outlook.office365.com"}


def test_a_refused_token_is_replaced_once_however_many_were_refused(world):
    identity = world.identity()
    old = token(identity)

    async def all_refused():
        return await asyncio.gather(*(identity.token(SCOPE, refused=old) for _ in range(5)))

    (new,) = set(asyncio.run(all_refused()))
    assert new != old
    assert len(world.emulator.requests(TOKEN)) == 2


# ------------------------------------------------------------------ scenario 12


TROUBLE = [
    pytest.param(
        Fault(
            TOKEN, Answer.of(429, {"error": "temporarily_unavailable"}, retry_after="20"), times=9
        ),
        id="429",
    ),
    pytest.param(Fault(TOKEN, Answer(503, b"busy"), times=9), id="503"),
    pytest.param(Fault(TOKEN, drop=httpx.ReadTimeout, times=9), id="time-out"),
    pytest.param(Fault(TOKEN, drop=httpx.ConnectError, times=9), id="no connection"),
    pytest.param(Fault("openid-configuration", Answer(503), times=9), id="discovery 503"),
]


@pytest.mark.parametrize("fault", TROUBLE)
def test_12_while_the_token_endpoint_is_in_trouble_the_last_good_token_goes_on(world, fault):
    identity = world.identity()
    good = token(identity)
    world.clock.advance(minutes=56)
    world.emulator.faults = [fault]
    assert token(identity) == good
    asked = len(world.emulator.journal)
    # Not asked again for each letter.
    assert token(identity) == good
    assert len(world.emulator.journal) == asked
    world.emulator.faults = []
    world.clock.advance(seconds=31)
    assert token(identity) != good


@pytest.mark.parametrize("fault", TROUBLE)
def test_12_without_any_token_trouble_at_the_endpoint_pauses_and_stops_nothing(world, fault):
    world.emulator.faults = [fault]
    outcomes = world.send(letter(1), letter(2))
    assert all(isinstance(o, Unavailable) and not o.needs_a_person for o in outcomes)
    assert outcomes[0].reply.phase is Phase.AUTH
    assert world.emulator.requests("sendMail") == []


def test_12_the_endpoints_wish_is_heeded(world):
    world.emulator.faults = [TROUBLE[0].values[0]]
    with pytest.raises(IdentityError) as caught:
        token(world.identity())
    assert caught.value.retry_after.total_seconds() == 20


def test_12_a_token_at_its_very_end_is_not_used(world):
    identity = world.identity()
    token(identity)
    world.clock.advance(seconds=3599 - 10)
    world.emulator.faults = [Fault(TOKEN, Answer(503), times=9)]
    with pytest.raises(IdentityError):
        token(identity)


@pytest.mark.parametrize(
    ("status", "error", "number", "word"),
    [
        (401, "invalid_client", 7000215, "not its ID"),
        (401, "invalid_client", 7000222, "expired"),
        (400, "unauthorized_client", 700016, "does not know this application"),
        (400, "invalid_request", 90002, "no such tenant"),
        (401, "invalid_client", 700027, "certificate"),
        (400, "invalid_grant", 53003, "conditional access"),
    ],
)
def test_12_a_wrong_setting_needs_a_person_and_is_asked_once(world, status, error, number, word):
    answer = GraphEmulator.refused_token(status, error, number, "No.")
    world.emulator.faults = [Fault(TOKEN, answer, times=9)]
    outcomes = world.send(*(letter(n) for n in range(5)))
    assert all(isinstance(o, Unavailable) and o.needs_a_person for o in outcomes)
    assert word in outcomes[0].reply.text
    assert f"AADSTS{number}" in outcomes[0].reply.text
    assert len(world.emulator.requests(TOKEN)) == 1


def test_12_a_corrected_secret_works_at_once(world):
    """msal by itself answers from its memory for a minute."""
    with pytest.raises(IdentityError):
        token(world.identity(client_secret="wrong"))
    assert token(world.identity())


def test_12_a_mended_registration_works_at_once_with_the_same_identity(world):
    identity = world.identity()
    world.emulator.faults = [
        Fault(TOKEN, GraphEmulator.refused_token(400, "unauthorized_client", 700016, "No."))
    ]
    with pytest.raises(IdentityError):
        token(identity)
    assert token(identity)


# ------------------------------------------------------------------ credentials


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A PEM with key and certificate, and the same as PFX."""
    folder = tmp_path_factory.mktemp("certificate")
    pem, key, crt, pfx = (folder / name for name in ("both.pem", "key", "crt", "both.pfx"))
    openssl = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=test"]
    subprocess.run([*openssl, "-keyout", key, "-out", crt], check=True, capture_output=True)
    pem.write_bytes(key.read_bytes() + crt.read_bytes())
    export = ["openssl", "pkcs12", "-export", "-inkey", key, "-in", crt, "-out", pfx]
    subprocess.run([*export, "-passout", "pass:word"], check=True, capture_output=True)
    return pem, pfx


class Form:
    """Remembers what msal posts to the token endpoint."""

    def __init__(self, login):
        self.login, self.data = login, {}

    def post(self, url, data=None, **named):
        self.data = data
        return self.login.post(url, data=data, **named)

    def get(self, *arguments, **named):
        return self.login.get(*arguments, **named)


@pytest.mark.parametrize("which", [0, 1], ids=["pem", "pfx"])
def test_a_certificate_signs_an_assertion(world, certificate, which):
    form = Form(world.login)
    identity = world.identity(
        client_secret="",
        certificate_file=str(certificate[which]),
        certificate_password="word" if which else "",
        http_client=form,
    )
    assert token(identity)
    header = str(form.data["client_assertion"], "ascii").split(".")[0]
    decoded = json.loads(base64.urlsafe_b64decode(header + "=" * (-len(header) % 4)))
    assert decoded["alg"] == "PS256"
    assert "client_secret" not in form.data


def test_a_federated_token_is_read_anew_each_time(world, tmp_path):
    file = tmp_path / "token"
    form = Form(world.login)
    identity = world.identity(client_secret="", federated_token_file=str(file), http_client=form)
    for assertion in ("first.one.x", "second.one.x"):
        file.write_text(f"{assertion}\n")
        token(identity)
        assert form.data["client_assertion"] == assertion
        world.clock.advance(hours=1)


@pytest.mark.parametrize("who", ["system", "0000-user-assigned"])
def test_a_managed_identity_asks_the_machine_that_it_runs_on(world, who):
    identity = MicrosoftIdentity(
        managed_identity=who, http_client=world.login, clock=lambda: world.clock().timestamp()
    )
    assert token(identity)
    (asked,) = world.emulator.requests("/metadata/identity")
    assert asked.host == "169.254.169.254"
    (outcome,) = world.send(letter(), provider=world.provider(token_source=identity))
    assert isinstance(outcome, Accepted)


def test_a_certificate_that_is_none_needs_a_person(world, tmp_path):
    file = tmp_path / "x.pem"
    file.write_text("nonsense")
    with pytest.raises(IdentityError) as caught:
        token(world.identity(client_secret="", certificate_file=str(file)))
    assert caught.value.needs_a_person


@pytest.mark.parametrize("option", ["certificate_file", "federated_token_file"])
def test_a_missing_file_needs_a_person(world, option):
    with pytest.raises(IdentityError) as caught:
        token(world.identity(client_secret="", **{option: "/nowhere/x.pem"}))
    assert caught.value.needs_a_person


@pytest.mark.parametrize("cloud", list(CLOUDS))
def test_each_cloud_is_asked_at_its_own_login_host(world, cloud):
    token(world.identity(cloud=cloud), CLOUDS[cloud].graph_scope)
    host = CLOUDS[cloud].authority.removeprefix("https://")
    assert host in {entry.host for entry in world.emulator.journal}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tenant_id": "t", "client_id": "a"},
        {"tenant_id": "t", "client_id": "a", "client_secret": "s", "certificate_file": "c"},
        {"tenant_id": "common", "client_id": "a", "client_secret": "s"},
        {"tenant_id": "t/../x", "client_id": "a", "client_secret": "s"},
        {"tenant_id": "t", "client_secret": "s"},
        {"tenant_id": "t", "client_id": "a", "client_secret": "s", "cloud": "moon"},
        {"tenant_id": "t", "client_id": "a", "client_secret": "s", "authority": "http://x"},
        {"tenant_id": "t", "client_id": "a", "client_secret": "s", "emulator": "https://x.example"},
    ],
)
def test_options_that_cannot_be_are_refused(options):
    with pytest.raises(ValueError):
        MicrosoftIdentity(**options)


# ------------------------------------------------------------------ nothing leaks


def test_no_token_and_no_secret_stands_in_a_log_a_repr_or_an_error(world, caplog):
    caplog.set_level(logging.DEBUG)
    secret = "s3cr3t-value-of-the-application"
    world.emulator.secret = secret
    identity = world.identity(client_secret=secret)
    provider = world.provider(token_source=identity)
    world.send(letter(1), provider=provider)
    world.confirm(letter(1), provider)
    world.emulator.faults = [
        Fault("sendMail", Answer.error(403, "ErrorAccessDenied")),
        Fault(TOKEN, GraphEmulator.refused_token(401, "invalid_client", 7000215, f"Not {secret}")),
    ]
    (outcome,) = world.send(letter(2), provider=provider)
    world.clock.advance(hours=1)
    with pytest.raises(IdentityError) as caught:
        token(identity)
    shown = [caplog.text, repr(identity), repr(provider), str(caught.value), repr(caught.value)]
    shown += [repr(vars(identity)["_tokens"]), repr(outcome), str(caught.value.__cause__)]
    for text in shown:
        assert secret not in text
        assert "emulated-token-" not in text
    assert "contoso.example" not in "".join(
        record.getMessage() for record in caplog.records if record.name == "httpx"
    )


def test_a_slice_finds_the_token_of_the_slice_before_and_a_new_secret_is_a_new_identity():
    options = {"tenant_id": "t", "client_id": "a", "client_secret": "one"}
    assert shared_identity(options) is shared_identity(dict(options))
    assert shared_identity(options) is not shared_identity(options | {"client_secret": "two"})


def test_the_clock_of_the_identity_is_that_of_the_machine_unless_told():
    identity = MicrosoftIdentity("t", "a", "s")
    assert abs(identity._clock() - time.time()) < 60
