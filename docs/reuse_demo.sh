#!/bin/sh
# Draw docs/images/reuse.svg: 200 requests of which 45 are bad, fixed, and run again. Run it in the checkout.
set -eu
root=$(pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
"$root/.venv/bin/python" - > leads.jsonl <<'END'
import json

for number in range(1, 201):
    limit = "100" if number % 40 < 9 else 100  # a text instead of a number
    params = {"messages": [{"role": "user", "content": f"Write to lead {number}."}], "max_tokens": limit}
    print(json.dumps({"custom_id": f"lead-{number}", "params": params}))
END
export PYTHONPATH=$root
PATH="$root/.venv/bin:$PATH" python "$root/docs/demo_svg.py" "$root/docs/images/reuse.svg" \
    'wc -l leads.jsonl' \
    'batchfile run leads.jsonl -o results.jsonl --engine echo' \
    "sed -i 's/\"max_tokens\": \"100\"/\"max_tokens\": 100/' leads.jsonl" \
    'batchfile run leads.jsonl -o results.jsonl --engine echo'
