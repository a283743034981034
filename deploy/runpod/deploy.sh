#!/usr/bin/env bash
# Deploys to RunPod from the JSON files in this folder: deploy.sh plan | apply | status | prefetch | destroy.
# Changes nothing without --yes. Needs only Python 3.11 or newer.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
PYTHONPATH="$here/../.." exec "${PYTHON:-python3}" "$here/deploy.py" "$@"
