"""Runs the providers' official SDKs against Weir; only base URL and key differ from normal use.

A process test sets WEIR and WEIR_ADMIN (host:port of a gateway) and SIM (host:port of its simulator). Prints `ok` at the
end, or fails with a traceback.
"""

import json
import os
import time
import urllib.request

from foundry_sdk import Config, FoundryClient, UserTokenAuth
from foundry_sdk import _errors as errors
from foundry_sdk._core import api_client
from foundry_sdk.v2.aip_agents import errors as agent_errors
from vectara import AgentInput_Text, Vectara
from vectara.agent_events import CreateAgentEventsStreamRequestBody_InputMessage
from vectara.core.api_error import ApiError
from vectara.environment import VectaraEnvironment
from vectara.errors import NotFoundError

WEIR = os.environ["WEIR"]
AGENT = "ri.aip-agents..agent.732cd5b4-7ca7-4219-aabb-6e976faf63b1"
SESSION = "ri.aip-agents..session.292db3b2-b653-4de6-971c-7e97a7b881d6"
ONCE = {"max_retries": 0}
LIMITED = 'weir_rate_limit_requests_total{client="brisk",decision="limited",policy="brisk"}'


def vectara(key="open"):
    url = f"http://{WEIR}/vectara"
    return Vectara(environment=VectaraEnvironment(default=url, auth=url), api_key=key)


def foundry(key="open"):
    return FoundryClient(auth=UserTokenAuth(key), hostname=f"{WEIR}/palantir", config=Config(scheme="http"))


def raised(kind, call):
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"{kind.__name__} was not raised")


def sim(method, path, body=None):
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(f"http://{os.environ['SIM']}/_sim/{path}", data, method=method)) as response:
        return json.load(response)


def calls(method, path):
    """Returns how many such requests the provider received."""
    return sum(n for target, n in sim("GET", "calls")["calls"].items() if target.split("?")[0] == f"{method} {path}")


def metric(series):
    with urllib.request.urlopen(f"http://{os.environ['WEIR_ADMIN']}/metrics") as response:
        lines = response.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(series))


def recovers_from_weir(call, method, path):
    """Checks that an unmodified SDK recovers from Weir's 429: it waits, retries and gets its result.

    Returns how many calls succeeded and how many requests the provider received.
    """
    sim("DELETE", "calls")
    before, served = metric(LIMITED), 0
    while metric(LIMITED) == before:
        assert served < 20, "never limited"
        call()
        served += 1
    print(f"{method} {path}: {metric(LIMITED) - before:.0f} x 429 from Weir, {served} served, {calls(method, path)} provider calls")
    return served, calls(method, path)


def recovers_from_provider(call, method, path):
    """Checks that an unmodified SDK recovers from one 429 of the provider: the second provider call succeeds."""
    sim("DELETE", "calls")
    fault = {"kind": "answer", "status": 429, "headers": {"retry-after": "1"}, "body": {"messages": ["slow"]}}
    sim("POST", "faults", {"path": path, "times": 1, "fault": fault})
    begun = time.monotonic()
    call()
    print(f"{method} {path}: served {time.monotonic() - begun:.2f} s after a 429 from the provider, {calls(method, path)} provider calls")
    assert calls(method, path) == 2, sim("GET", "calls")


class FixedBackoff:
    """Replaces the random backoff of the Foundry SDK by its middle (0.25, 0.5 and 1 s)."""

    def random(self):
        return 0.5


def vectara_retries():
    sessions = vectara().agent_sessions
    path = "/v2/agents/agt_load_1/sessions/ase_agt_load_1_{}".format
    brisk = vectara("brisk").agent_sessions
    _, provider_calls = recovers_from_weir(lambda: brisk.get("agt_load_1", "ase_agt_load_1_7"), "GET", path(7))
    assert provider_calls <= 1, "a cached session was fetched again"
    served, provider_calls = recovers_from_weir(lambda: brisk.update("agt_load_1", "ase_agt_load_1_7", name="n"), "PATCH", path(7))
    assert provider_calls == served, "a request that Weir refused reached the provider"
    recovers_from_provider(lambda: sessions.get("agt_load_1", "ase_agt_load_1_8"), "GET", path(8))
    recovers_from_provider(lambda: sessions.update("agt_load_1", "ase_agt_load_1_8", name="n"), "PATCH", path(8))
    assert sessions.get("agt_load_1", "ase_agt_load_1_8").name == "n"


def vectara_stream():
    request = CreateAgentEventsStreamRequestBody_InputMessage(messages=[AgentInput_Text(content="?")])
    options = {"additional_headers": {"x-sim-stream": "6,400"}}
    events = vectara().agent_events.create_stream("agt_load_1", "ase_agt_load_1_3", request=request, request_options=options)
    begun, received = time.monotonic(), []
    for event in events:
        received.append((event, time.monotonic() - begun))
    output = ["streaming_agent_output"] * 4
    assert [event.type for event, _ in received] == [*output, "streaming_agent_output_end", "end"], received
    assert "".join(event.content for event, _ in received[:4]) == "word0 word1 word2 word3 "
    times = [at for _, at in received]
    print("events of create_stream after " + ", ".join(f"{at:.2f}" for at in times) + " s, sent 400 ms apart")
    # If Weir buffered the stream, all events would arrive at once.
    assert times[-1] - times[0] > 1 and sum(after - before > 0.15 for before, after in zip(times, times[1:])) >= 3, times


def foundry_retries():
    api_client.SystemRandom = FixedBackoff
    path = f"/api/v2/aipAgents/agents/{AGENT}/sessions/{SESSION}"
    brisk, session = foundry("brisk").aip_agents.Agent.Session, foundry().aip_agents.Agent.Session
    _, provider_calls = recovers_from_weir(lambda: brisk.get(AGENT, SESSION, preview=True), "GET", path)
    assert provider_calls <= 1, "a cached session was fetched again"
    rename = lambda by: lambda: by.update_title(AGENT, SESSION, title="retried", preview=True)
    served, provider_calls = recovers_from_weir(rename(brisk), "PUT", f"{path}/updateTitle")
    assert provider_calls == served, "a request that Weir refused reached the provider"
    recovers_from_provider(rename(session), "PUT", f"{path}/updateTitle")
    # The write above removed the cache entry, so the session is fetched again.
    recovers_from_provider(lambda: session.get(AGENT, SESSION, preview=True), "GET", path)


def vectara_session():
    client = vectara()
    sessions = client.agent_sessions
    one = sessions.get("agt_load_1", "ase_agt_load_1_3")
    assert (one.key, one.name) == ("ase_agt_load_1_3", "Session 3 of agt_load_1"), one
    keys = [session.key for session in sessions.list("agt_load_1", limit=25)]
    assert len(keys) == len(set(keys)) == 57, keys
    made = sessions.create("agt_load_1", key="ase_by_sdk", name="made")
    assert made.key == "ase_by_sdk"
    assert [session.key for session in sessions.list("agt_load_1", limit=25)][0] == "ase_by_sdk"
    sessions.update("agt_load_1", "ase_agt_load_1_3", name="renamed")
    assert sessions.get("agt_load_1", "ase_agt_load_1_3").name == "renamed"
    sessions.delete("agt_load_1", "ase_by_sdk")
    missing = raised(NotFoundError, lambda: sessions.get("agt_load_1", "ase_by_sdk"))
    assert missing.status_code == 404
    # Create after a 404: the cached 404 must not hide the new session.
    sessions.create("agt_load_1", key="ase_by_sdk", name="made again")
    assert sessions.get("agt_load_1", "ase_by_sdk").name == "made again"
    sessions.delete("agt_load_1", "ase_by_sdk")
    unknown = raised(ApiError, lambda: vectara("nobody").agent_sessions.get("agt_load_1", "ase_x_1", request_options=ONCE))
    assert unknown.status_code == 401 and "API key" in unknown.body["messages"][0], unknown
    once = vectara("once").agent_sessions
    once.get("agt_load_1", "ase_agt_load_1_4")
    limited = raised(ApiError, lambda: once.get("agt_load_1", "ase_agt_load_1_4", request_options=ONCE))
    assert limited.status_code == 429 and int(limited.headers["retry-after"]) > 3000, limited
    raw = client.agent_sessions.with_raw_response.get("agt_load_1", "ase_agt_load_1_5")
    again = client.agent_sessions.with_raw_response.get("agt_load_1", "ase_agt_load_1_5")
    assert "fwd=miss" in raw.headers["cache-status"] and "hit" in again.headers["cache-status"]


def foundry_session():
    session = foundry().aip_agents.Agent.Session
    assert session.get(AGENT, SESSION, preview=True).rid == SESSION
    rids = [one.rid for one in session.list(AGENT, page_size=20, preview=True)]
    assert len(rids) == len(set(rids)) == 57, len(rids)
    session.update_title(AGENT, SESSION, title="renamed", preview=True)
    assert session.get(AGENT, SESSION, preview=True).metadata.title == "renamed"
    made = session.create(AGENT, preview=True)
    assert session.get(AGENT, made.rid, preview=True).rid == made.rid
    said = session.blocking_continue(AGENT, made.rid, parameter_inputs={}, user_input={"text": "?"}, preview=True)
    assert said.agent_markdown_response == "It is so."
    streamed = session.streaming_continue(AGENT, made.rid, parameter_inputs={}, user_input={"text": "?"}, preview=True)
    assert streamed.startswith(b"word0 word1 "), streamed
    other = SESSION[:-1] + "0"
    missing = raised(agent_errors.SessionNotFound, lambda: session.get(AGENT, other, preview=True))
    assert missing.name == "SessionNotFound"
    unknown = foundry("nobody").aip_agents.Agent.Session
    raised(errors.UnauthorizedError, lambda: unknown.get(AGENT, SESSION, preview=True))
    denied = foundry("plain").aip_agents.Agent.Session
    raised(errors.PermissionDeniedError, lambda: denied.get(AGENT, SESSION, preview=True))
    once = foundry("once").aip_agents.Agent.Session
    # `once` has used its only request. A retry is pointless, and a response header stops the SDK from retrying.
    begun = time.monotonic()
    raised(errors.RateLimitError, lambda: once.get(AGENT, SESSION, preview=True))
    print(f"RateLimitError after {time.monotonic() - begun:.3f} s")


vectara_session()
vectara_stream()
vectara_retries()
foundry_session()
foundry_retries()
print("ok")
