"""Sets up this machine: the project with its extras, vLLM, and a small real model. Can be run again at any time.

Run it with the Python of the virtual environment to install into:

    .venv/bin/python deploy/local.py            # what the demo needs
    .venv/bin/python deploy/local.py --service  # also what the API and the runners need
    .venv/bin/python deploy/local.py --test     # also what the tests need
    .venv/bin/python deploy/local.py --print-model

Versions come from constraints.txt and, on a CPU, constraints-cpu.txt; `--newest` ignores both, and
`--write-constraints` writes them from what is installed. Uses only the standard library.

Environment:
    BATCHFILE_CACHE       folder of models (default ~/.cache/batchfile), outside the repository
    PIP_EXTRA_INDEX_URL   set it to PyTorch's CPU wheel index if pip does not find torch's CPU build
"""

import argparse
import sys

from local_setup.model import model_dir
from local_setup.places import SetupError
from local_setup.progress import say
from local_setup.recipe import set_up

EXTRAS_DEMO = ("parquet", "s3")
EXTRAS_SERVICE = (*EXTRAS_DEMO, "api", "fleet")
EXTRAS_TEST = (*EXTRAS_SERVICE, "test", "prices", "ray", "runpod")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Set up batchfile, vLLM and a small model on this machine.")
    parser.add_argument("--service", action="store_true", help="also install what the API and the runners need")
    parser.add_argument("--test", action="store_true", help="also install what the tests need")
    parser.add_argument("--newest", action="store_true", help="install the newest versions, without the constraints")
    parser.add_argument("--print-model", action="store_true", help="only print the path of the model")
    parser.add_argument("--write-constraints", action="store_true", help="write the versions that are installed")
    return parser.parse_args()


def main() -> int:
    arguments = parse()
    if arguments.print_model:
        sys.stdout.write(f"{model_dir()}\n")
        return 0
    extras = EXTRAS_TEST if arguments.test else EXTRAS_SERVICE if arguments.service else EXTRAS_DEMO
    try:
        if arguments.write_constraints:
            from local_setup.constraints import write_constraints

            write_constraints()
        else:
            set_up(extras, is_newest=arguments.newest, is_service=arguments.service)
    except SetupError as error:
        say(f"\nSet-up stopped: {error}")
        return 1
    except OSError as error:
        say(f"\nSet-up stopped: {error}. Check the disk and the permissions, then run the same command again.")
        return 1
    except KeyboardInterrupt:
        say("\nSet-up interrupted. Run the same command again to continue.")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
