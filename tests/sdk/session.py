"""The providers' official SDKs against Weir: only base URL and key are changed.

Called by a process test with WEIR (host:port of a gateway before the simulator). Ends with `ok` or a traceback.
"""

import os
import time

from foundry_sdk import Config, FoundryClient, UserTokenAuth
from foundry_sdk import _errors as errors
from foundry_sdk.v2.aip_agents import errors as agent_errors
from vectara import Vectara
from vectara.core.api_error import ApiError
from vectara.environment import VectaraEnvironment
from vectara.errors import NotFoundError

WEIR = os.environ["WEIR"]
AGENT = "ri.aip-agents..agent.732cd5b4-7ca7-4219-aabb-6e976faf63b1"
SESSION = "ri.aip-agents..session.292db3b2-b653-4de6-971c-7e97a7b881d6"
ONCE = {"max_retries": 0}


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
    # Get or create: what was not there a moment ago is found once it was made.
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
    # `once` has spent its one request already; a retry is pointless, and the SDK is told so.
    begun = time.monotonic()
    raised(errors.RateLimitError, lambda: once.get(AGENT, SESSION, preview=True))
    print(f"RateLimitError after {time.monotonic() - begun:.3f} s")


vectara_session()
foundry_session()
print("ok")
