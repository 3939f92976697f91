"""Reads sessions, pages and problems with the client that openapi-python-client generates."""

import os

from weir_client import AuthenticatedClient
from weir_client.api.sessions import get_session, list_agent_sessions
from weir_client.models import GetSessionFieldsItem

AGENT = "agt_customer_support"


def client(key):
    return AuthenticatedClient(base_url=f"http://{os.environ['WEIR']}", token=key, raise_on_unexpected_status=True)


def ids(page):
    return [session.id for session in page.sessions]


def walk(limit):
    """Reads all pages. Returns the ids and the number of pages."""
    found, token, pages = [], None, 0
    while pages == 0 or token:
        more = {"page_token": token} if token else {}
        page = list_agent_sessions.sync(AGENT, client=weir, limit=limit, **more)
        found, token, pages = found + ids(page), page.next_page_token, pages + 1
        assert pages < 50
    return found, pages


weir = client("open")
first = list_agent_sessions.sync(AGENT, client=weir, limit=25)
expected, _ = walk(100)
assert len(expected) > 25 and ids(first) == expected[:25] and first.partial is False, first
walked, pages = walk(10)
assert walked == expected and len(set(walked)) == len(walked) and pages > 2, walked

session = get_session.sync(expected[0], client=weir)
assert session.id == expected[0] and session.status.value, session
assert isinstance(session.metadata.to_dict(), dict), session

part = get_session.sync(expected[0], client=weir, fields=[GetSessionFieldsItem.ID, GetSessionFieldsItem.STATUS])
assert (part.id, part.status.value) == (session.id, session.status.value) and not part.title, part

missing = get_session.sync("vectara:agt_customer_support:ase_missing", client=weir)
assert (missing.status, missing.code.value) == (404, "session_not_found"), missing
assert missing.detail and missing.request_id, missing

once = client("once")
assert get_session.sync(expected[0], client=once).id == expected[0]
limited = get_session.sync(expected[0], client=once)
assert (limited.status, limited.code.value) == (429, "rate_limit_exceeded"), limited
assert limited.retry_after > 0 and limited.violated_policies == ["once"], limited
print("ok")
