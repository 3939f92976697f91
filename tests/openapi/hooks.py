"""What OpenAPI cannot say of a single parameter, generated requests are made to fit.

A description has a schema for each parameter, and none for several together. These rules hold between parameters, or
between a parameter and an earlier answer; each is said in the words of the description, and each is tested elsewhere.
Only requests that are meant to be right are touched: those meant to be wrong go out as they were made.
"""

import os
import re
from urllib.parse import quote, unquote

import requests
import schemathesis

WEIR = os.environ["WEIR"]
KEY = {"X-API-Key": "open"}
DESCRIPTION = requests.get(f"{WEIR}/openapi.json", timeout=10).json()
PROVIDERS = {row["name"]: row for row in requests.get(f"{WEIR}/v1/providers", headers=KEY, timeout=10).json()["providers"]}
WITHOUT_AGENTS = [name for name, row in PROVIDERS.items() if not row["agents"]]
WATCH = "/v1/sessions/{id}/watch"


def examples(path, name):
    """By provider: what the description shows for a path parameter."""
    parameters = DESCRIPTION["paths"][path]["get"]["parameters"]
    return next({p: e["value"] for p, e in x["examples"].items()} for x in parameters if x.get("name") == name)


AGENTS = examples("/v1/agents/{agent}/sessions", "agent")
SESSIONS = examples("/v1/agents/{agent}/sessions/{session}", "session")
ENDED = examples(WATCH, "id")


def filters_enabled(name):
    source = f"provider={name}" if name in WITHOUT_AGENTS else f"agent={name}:{AGENTS[name]}"
    return requests.get(f"{WEIR}/v1/sessions?{source}&enabled=true", headers=KEY, timeout=10).status_code == 200


ENABLED = {name for name in PROVIDERS if filters_enabled(name)}


def accepts(name, kind, text):
    pattern = PROVIDERS[name]["ids"]["accept"][kind]
    return pattern is not None and re.search(pattern, text, re.ASCII) is not None


def placed(case, name):
    """What stands in a place of the path, which is kept as it is sent."""
    return unquote(case.path_parameters[name])


def owner(agent, asked):
    """The provider whose agent this is: the one asked for if it may be, else the first that may."""
    for name in [asked, *PROVIDERS]:
        if name in PROVIDERS and accepts(name, "agent", agent):
            return name
    return None


def fit_agent(case):
    """The ids in a path belong to one provider; where their patterns do not tell it, `provider` does."""
    agent, query = placed(case, "agent"), case.query
    name = owner(agent, query.get("provider"))
    if name is None:
        return
    query["provider"] = name
    if "session" in case.path_parameters and not accepts(name, "session", placed(case, "session")):
        case.path_parameters["session"] = SESSIONS[name]
    if name not in ENABLED:
        query.pop("enabled", None)


def fit_sources(case):
    """A list has sources, each once, at most 50: agents, and providers without agents."""
    query, sources = case.query, []
    for agent in query.get("agent") or []:
        name, _, own = agent.rpartition(":")
        name = name or owner(own, None)
        if name and (name, own) not in sources:
            sources.append((name, own))
    providers = [name for name in query.get("provider") or [] if name in WITHOUT_AGENTS]
    sources = sources[: 50 - len(providers)]
    if not sources and not providers:
        providers = WITHOUT_AGENTS
    query["agent"] = [f"{name}:{own}" for name, own in sources]
    query["provider"] = providers
    if not {name for name, _ in sources}.union(providers) <= ENABLED:
        query.pop("enabled", None)


def fit_stream(case):
    """Who watches a session that goes on waits for it: here all that are watched have ended."""
    answer = requests.get(f"{WEIR}/v1/sessions/{quote(placed(case, 'id'), safe='')}", headers=KEY, timeout=10)
    if answer.status_code == 200 and answer.json()["status"] not in ("ended", "expired"):
        case.path_parameters["id"] = next(iter(ENDED.values()))


@schemathesis.hook
def before_call(context, case, kwargs):
    path = case.operation.path
    right = case.meta is None or case.meta.generation.mode.is_positive
    if path == WATCH and isinstance(case.path_parameters.get("id"), str):
        fit_stream(case)
    if not right:
        return
    # A page token is made by Weir, for one list and one client: no other text is one.
    case.query.pop("page_token", None)
    if path.startswith("/v1/agents/"):
        fit_agent(case)
    elif path == "/v1/sessions":
        fit_sources(case)
