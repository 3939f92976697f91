#!/usr/bin/env python3
"""Validates Kubernetes manifests offline and prints every fault. Exits with 1 if there is one.

Kubernetes' own kinds are validated strictly against its published schemas. A ServiceMonitor is parsed by the model of
the Prometheus operator, which drops unknown keys: a key that the parsed model lacks is reported as unknown.

Usage: kubernetes.py FILE...
"""

import sys

import kubernetes_validate
import yaml
from cloudcoil.models.prometheus_operator import v1 as operator


def dropped_keys(before, after, path=""):
    """Yields a fault for each key of `before` that `after` lacks."""
    if isinstance(before, dict):
        for key, value in before.items():
            if not isinstance(after, dict) or key not in after:
                yield f"{path}.{key} is an unknown key"
            else:
                yield from dropped_keys(value, after[key], f"{path}.{key}")
    elif isinstance(before, list):
        for at, value in enumerate(before):
            yield from dropped_keys(value, after[at], f"{path}[{at}]")


def faults(document):
    if document["apiVersion"].startswith("monitoring.coreos.com/"):
        try:
            model = getattr(operator, document["kind"]).model_validate(document)
        except (AttributeError, ValueError) as error:
            return [str(error)]
        return list(dropped_keys(document, model.model_dump(by_alias=True, exclude_unset=True, mode="json")))
    try:
        kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)
    except Exception as error:  # every exception of the library is a fault of the manifest; its first line names it
        return [str(error).splitlines()[0]]
    return []


def main():
    found = 0
    for file in sys.argv[1:]:
        for document in yaml.safe_load_all(open(file)):
            name = f"{file}: {document['kind']} {document['metadata']['name']}"
            messages = faults(document)
            found += len(messages)
            print(f"{name}: {'; '.join(messages) or 'ok'}")
    return int(found > 0)


sys.exit(main())
