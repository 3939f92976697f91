#!/bin/sh
# Prints a configuration directory as the ConfigMap `weir-config`, for `kubectl apply -f -` or for a file:
#   deploy/kubernetes/configmap.sh config > deploy/kubernetes/configmap.yaml
# Clients are left out: they are a ConfigMap of their own (clients.yaml beside this), since they change with people.
# So are examples, which `weir check` runs before anything is rolled out. A key has no room for a slash: the
# Deployment puts providers.NAME.yaml where providers/NAME.yaml belongs.
set -eu
directory=$1

entry() { # KEY FILE
  printf '  %s: |\n' "$1"
  sed -e 's/^\(.\)/    \1/' "$2"
}

cat <<'HEAD'
# Made by configmap.sh; change what it was made of.
apiVersion: v1
kind: ConfigMap
metadata:
  name: weir-config
  labels: { app.kubernetes.io/name: weir }
data:
HEAD
entry weir.yaml "$directory/weir.yaml"
for file in "$directory"/providers/*.yaml; do
  entry "providers.$(basename "$file")" "$file"
done
