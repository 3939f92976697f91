"""Computes the signatures of requests (AWS Signature Version 4) with the code of AWS' own SDK, and compares them.

Reads a JSON array of requests from standard input, and prints how many have the right signature.
"""

import json
import re
import sys

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

SECRET = "canary/secret+key"
PATTERN = re.compile(r"AWS4-HMAC-SHA256 Credential=([^/]+)/(\d{8})/([^/]+)/([^/]+)/aws4_request, SignedHeaders=([^,]+), Signature=([0-9a-f]{64})")

requests = json.load(sys.stdin)
for request in requests:
    headers = {name: value for name, value in request["headers"]}
    key, day, region, service, names, signature = PATTERN.fullmatch(headers["authorization"]).groups()
    time = headers["x-amz-date"]
    assert time.startswith(day), request
    signed = {name: headers[name] for name in names.split(";")}
    # Everything that AWS requires to be signed.
    required = {name for name in headers if name.startswith("x-amz-")} | {"host"}
    assert required == set(signed), (required, names)
    signed = {"X-Amz-Content-SHA256" if name == "x-amz-content-sha256" else name: value for name, value in signed.items()}
    url = "http://" + headers["host"] + request["target"]
    made = AWSRequest(method=request["method"], url=url, headers=signed, data=request["body"].encode())
    made.context["timestamp"] = time
    auth = SigV4Auth(Credentials(key, SECRET), service, region)
    canonical = auth.canonical_request(made)
    expected = auth.signature(auth.string_to_sign(made, canonical), made)
    assert expected == signature, (request, canonical)
print(len(requests))
