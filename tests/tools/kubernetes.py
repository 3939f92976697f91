#!/usr/bin/env python3
"""Checks Kubernetes manifests offline: Kubernetes' own kinds against its published schemas, strictly; a
ServiceMonitor against the operator's custom resource, whose model drops what it does not know: what is not
there afterwards was not known. Prints every fault; exit 1 if there is one.

Usage: kubernetes.py FILE...
"""

import sys

import kubernetes_validate
import yaml
from cloudcoil.models.prometheus_operator import v1 as operator


def lost(before, after, path=""):
    """Members of one that the other has not."""
    if isinstance(before, dict):
        for key, value in before.items():
            if not isinstance(after, dict) or key not in after:
                yield f"{path}.{key} is not known"
            else:
                yield from lost(value, after[key], f"{path}.{key}")
    elif isinstance(before, list):
        for at, value in enumerate(before):
            yield from lost(value, after[at], f"{path}[{at}]")


def faults(document):
    if document["apiVersion"].startswith("monitoring.coreos.com/"):
        try:
            model = getattr(operator, document["kind"]).model_validate(document)
        except (AttributeError, ValueError) as error:
            return [str(error)]
        return list(lost(document, model.model_dump(by_alias=True, exclude_unset=True, mode="json")))
    try:
        kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)
    except Exception as error:  # each of its exceptions is a fault of the manifest; its first line says which
        return [str(error).splitlines()[0]]
    return []


def main():
    found = 0
    for file in sys.argv[1:]:
        for document in yaml.safe_load_all(open(file)):
            name = f"{file}: {document['kind']} {document['metadata']['name']}"
            wrong = faults(document)
            found += len(wrong)
            print(f"{name}: {'; '.join(wrong) or 'ok'}")
    return int(found > 0)


sys.exit(main())
