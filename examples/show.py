"""Shows the results of the leads example: the first answer of each stage, and how many succeeded."""

import json
import sys
import textwrap
from pathlib import Path


def main(results: str) -> None:
    rows = [json.loads(line) for line in Path(results).read_bytes().splitlines()]
    shown = set()
    for row in rows:
        stage = row["custom_id"].split("_", 2)[2]
        if stage in shown or row["status"] != "succeeded":
            continue
        shown.add(stage)
        text = row["message"]["content"][0]["text"].strip()
        usage = row["usage"]
        tokens = f"{usage['input_tokens']} tokens in, {usage['output_tokens']} out" if usage else "tokens unknown"
        print(f"\n{row['custom_id']}  ({tokens})")
        print(textwrap.indent("\n".join(text.splitlines()[:12]), "    "))
    num = sum(row["status"] == "succeeded" for row in rows)
    print(f"\n{num} of {len(rows)} requests succeeded; all results are in {results}")


if __name__ == "__main__":
    main(sys.argv[1])
