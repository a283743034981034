#!/usr/bin/env bash
# Everything on RunPod, from the JSON files beside this one: deploy.sh plan | apply | status | prefetch | destroy.
# It changes nothing without --yes. Needs Python 3.11 or newer and nothing else.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
PYTHONPATH="$here/../.." exec "${PYTHON:-python3}" "$here/deploy.py" "$@"
