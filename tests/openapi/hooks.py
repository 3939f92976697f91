"""Adjusts generated requests to the rules between parameters that OpenAPI cannot express.

An OpenAPI schema describes one parameter. The rules here relate several parameters, or a parameter to an earlier
response. The description states each rule in prose, and other tests check each rule. Requests that schemathesis makes
invalid on purpose are sent unchanged, except that a watched session must have ended (see `fit_watch`).
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
    """Returns the examples of a path parameter by provider."""
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


def path_parameter(case, name):
    """Returns a path parameter decoded; the case keeps it percent-encoded."""
    return unquote(case.path_parameters[name])


def owner(agent, requested):
    """Returns the provider of an agent id: the requested one if it accepts the id, else the first that does."""
    for name in [requested, *PROVIDERS]:
        if name in PROVIDERS and accepts(name, "agent", agent):
            return name
    return None


def fit_agent(case):
    """Makes both ids in a path belong to one provider, and names it in `provider` because patterns may overlap."""
    agent, query = path_parameter(case, "agent"), case.query
    name = owner(agent, query.get("provider"))
    if name is None:
        return
    query["provider"] = name
    if "session" in case.path_parameters and not accepts(name, "session", path_parameter(case, "session")):
        case.path_parameters["session"] = SESSIONS[name]
    if name not in ENABLED:
        query.pop("enabled", None)


def fit_sources(query):
    """Gives a list at most 50 different sources: agents, and providers without agents."""
    sources = []
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


def fit_watch(case):
    """Replaces a running session by one that has ended: a watch of a running session would not end."""
    response = requests.get(f"{WEIR}/v1/sessions/{quote(path_parameter(case, 'id'), safe='')}", headers=KEY, timeout=10)
    if response.status_code == 200 and response.json()["status"] not in ("ended", "expired"):
        case.path_parameters["id"] = next(iter(ENDED.values()))


@schemathesis.hook
def before_call(context, case, kwargs):
    path = case.operation.path
    valid = case.meta is None or case.meta.generation.mode.is_positive
    if path == WATCH and isinstance(case.path_parameters.get("id"), str):
        fit_watch(case)
    if not valid:
        return
    # Only Weir can make a valid page token, and only for one list and one client.
    case.query.pop("page_token", None)
    if path.endswith("/watch-tokens"):
        return
    if case.method == "POST":
        case.body.pop("page_token", None)
        if path == "/v1/sessions:list":
            fit_sources(case.body)
        return
    if path.startswith("/v1/agents/"):
        fit_agent(case)
    elif path == "/v1/sessions":
        fit_sources(case.query)


@schemathesis.hook
def filter_case(context, case):
    """Skips forms that are invalid on purpose: encoded, most of them are valid, because a form has no types.

    tests/process/forms.rs sends invalid forms.
    """
    is_form = case.method == "POST" and not case.operation.path.endswith("/watch-tokens")
    return not is_form or case.meta is None or case.meta.generation.mode.is_positive
